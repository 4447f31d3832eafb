/* calls: connections that are not open yet: two that this service has called and nobody has answered, and
 * those of clients that it does not accept.
 *
 * Arguments: an address, and two ports there. It listens on ports 7200, and 7201 where a connection counts
 * once something has come (TCP_DEFER_ACCEPT). What becomes of a call it says once. */
#include "specimen.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

static int calls[2], told[2];

static void call(int which, const char *address, const char *port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    must(inet_pton(AF_INET, address, &to.sin_addr) == 1, address);
    calls[which] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    must(connect(calls[which], (void *)&to, sizeof to) < 0 && errno == EINPROGRESS, "connect");
}

static void listen_at(int port, int wait_seconds) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    must(bind(listener, (void *)&at, sizeof at) == 0 && listen(listener, 8) == 0, "listen");
    if (wait_seconds)
        must(!setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &wait_seconds, sizeof wait_seconds), "TCP_DEFER_ACCEPT");
}

static void check(void) {
    for (int which = 0; which < 2; which++) {
        struct pollfd events = {calls[which], POLLIN | POLLOUT, 0};
        struct tcp_info about;
        socklen_t length = sizeof about;
        int error = 0;
        if (told[which]) continue;
        if (poll(&events, 1, 0) == 0) {
            if (getsockopt(calls[which], IPPROTO_TCP, TCP_INFO, &about, &length) || about.tcpi_state != TCP_SYN_SENT)
                bad("call %d waits in state %d", which, about.tcpi_state);
            continue;
        }
        told[which] = 1;
        length = sizeof error;
        getsockopt(calls[which], SOL_SOCKET, SO_ERROR, &error, &length);
        if (error) printf("call %d failed: %s\n", which, strerror(error));
        else if (send(calls[which], "x", 1, MSG_NOSIGNAL) != 1) bad("call %d is open and is not: %s", which, strerror(errno));
        else printf("call %d is open\n", which);
    }
}

int main(int count, char **words) {
    begin();
    must(count == 4, "an address and two ports");
    listen_at(7200, 0);
    listen_at(7201, 60);
    call(0, words[1], words[2]);
    call(1, words[1], words[3]);
    rounds(check);
}
