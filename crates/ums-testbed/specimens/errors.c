/* errors: connections that have failed, of which nobody has been told yet: one that was refused while it
 * was being made, one that the other end has reset. Whoever asks later is told of an error. */
#include "specimen.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#define PORT 7120
#define NOBODYS_PORT 7121

static int listener, refused = -1, reset = -1;

static struct sockaddr_in own(int port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

static void wait_for_error(int socket) {
    struct pollfd failed = {.fd = socket};
    while (poll(&failed, 1, 5000) < 0 && errno == EINTR) continue;
    must(failed.revents & POLLERR, "an error");
}

static void fail_both(void) {
    struct sockaddr_in nobody = own(NOBODYS_PORT), to = own(PORT);
    refused = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect(refused, (struct sockaddr *)&nobody, sizeof nobody);
    wait_for_error(refused);
    reset = socket(AF_INET, SOCK_STREAM, 0);
    must(connect(reset, (struct sockaddr *)&to, sizeof to) == 0, "connect");
    int other = accept(listener, NULL, NULL);
    must(other >= 0 && send(reset, "x", 1, 0) == 1, "a connection");
    struct pollfd arrived = {.fd = other, .events = POLLIN};
    while (poll(&arrived, 1, 5000) < 0 && errno == EINTR) continue;
    /* It has not read what has arrived. */
    close(other);
    wait_for_error(reset);
}

static void check(void) {
    int error = 0;
    socklen_t length = sizeof error;
    char byte;
    if (getsockopt(refused, SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error == 0)
        bad("a connect that failed looks as if it had succeeded");
    ssize_t got = recv(reset, &byte, 1, MSG_DONTWAIT);
    if (got != -1 || errno == EAGAIN) bad("a connection that was reset reads %zd (%s)", got, strerror(errno));
    close(refused);
    close(reset);
    fail_both();
}

int main(void) {
    begin();
    int on = 1;
    struct sockaddr_in at = own(PORT);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    must(bind(listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(listener, 5) == 0, "listen");
    fail_both();
    rounds(check);
}
