/* moments: what can't be carried in the middle of it and is over in a moment, again and again, so that a
 * freeze often meets it.
 *
 * Argument: the name of the state, as in the table at the end. */
#include "specimen.h"
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

/* What is in the middle of something, and for how much of the time: so long, of so long. */
#define BUSY_US 4000
#define TURN_US 16000

static int ends[2];
static _Atomic unsigned long turns;
static unsigned long seen;

static void *repeat(void *one_turn) {
    for (;; turns++) {
        ((void (*)(void))one_turn)();
        usleep(TURN_US - BUSY_US);
    }
    return NULL;
}
static void start(void (*one_turn)(void)) {
    pthread_t thread;
    must(pthread_create(&thread, NULL, repeat, (void *)one_turn) == 0, "pthread_create");
}
static void goes_on(void) {
    if (seen && turns == seen) bad("it stands still after %lu turns", seen);
    seen = turns;
}

/* A connection that waits to be accepted, with data in it. */
static struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "\0moments"};
static const socklen_t name_length = offsetof(struct sockaddr_un, sun_path) + 8;
static void accept_one(void) {
    char got[8] = "";
    int mine = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(mine, (void *)&name, name_length)) bad("connect: %s", strerror(errno));
    if (write(mine, "early", 6) != 6) bad("write: %s", strerror(errno));
    usleep(BUSY_US);
    int accepted = accept(ends[0], NULL, NULL);
    if (accepted < 0 || read(accepted, got, sizeof got) != 6 || strcmp(got, "early")) bad("`%s` came: %s", got, strerror(errno));
    close(accepted), close(mine);
}
static void accepts_begin(void) {
    ends[0] = socket(AF_UNIX, SOCK_STREAM, 0);
    must(bind(ends[0], (void *)&name, name_length) == 0 && listen(ends[0], 5) == 0, "listen");
    start(accept_one);
}

/* A message whose sender its reader is told. */
static void read_one(void) {
    char text[8] = "", control[256];
    struct iovec into = {text, sizeof text};
    struct msghdr message = {.msg_iov = &into, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (write(ends[0], "by whom", 8) != 8) bad("write: %s", strerror(errno));
    usleep(BUSY_US);
    if (recvmsg(ends[1], &message, 0) != 8 || strcmp(text, "by whom")) bad("`%s` came: %s", text, strerror(errno));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_type != SCM_CREDENTIALS) bad("not told by whom");
    else if (((struct ucred *)CMSG_DATA(header))->pid != getpid()) bad("told by somebody else");
}
static void reads_begin(void) {
    int on = 1;
    must(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0, "socketpair");
    must(setsockopt(ends[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0, "SO_PASSCRED");
    start(read_one);
}

/* A listener to changes of links, addresses and routes that looks about once a second. */
static struct sockaddr_nl groups = {.nl_family = AF_NETLINK,
    .nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE};
static void links_begin(void) {
    ends[0] = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE);
    must(bind(ends[0], (void *)&groups, sizeof groups) == 0, "bind");
}
static void links(void) {
    static int round;
    static char message[65536];
    struct sockaddr_nl is;
    socklen_t length = sizeof is;
    if (getsockname(ends[0], (void *)&is, &length) || is.nl_groups != groups.nl_groups)
        bad("a member of %#x and not of %#x", is.nl_groups, groups.nl_groups);
    if (round++ % 3) return;
    while (recv(ends[0], message, sizeof message, 0) > 0) {}
    if (errno != EAGAIN) bad("recv: %s", strerror(errno));
}

/* A socket that holds datagrams back until they are whole, and has none. */
static void hold_back(int on) {
    if (setsockopt(ends[0], IPPROTO_UDP, UDP_CORK, &on, sizeof on)) bad("UDP_CORK: %s", strerror(errno));
}
static void corked_begin(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof to;
    ends[0] = socket(AF_INET, SOCK_DGRAM, 0);
    ends[1] = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    must(bind(ends[1], (void *)&to, sizeof to) == 0 && getsockname(ends[1], (void *)&to, &length) == 0, "bind");
    must(connect(ends[0], (void *)&to, sizeof to) == 0, "connect");
    hold_back(1);
}
static void corked(void) {
    char got[16] = "";
    if (write(ends[0], "one ", 4) != 4 || write(ends[0], "whole", 6) != 6) bad("write: %s", strerror(errno));
    if (read(ends[1], got, sizeof got) >= 0) bad("`%s` came at once", got);
    hold_back(0);
    if (read(ends[1], got, sizeof got) != 10 || strcmp(got, "one whole")) bad("`%s` came: %s", got, strerror(errno));
    hold_back(1);
}

static const struct state states[] = {
    {"accepts", accepts_begin, goes_on}, {"reads", reads_begin, goes_on}, {"links", links_begin, links},
    {"corked", corked_begin, corked},
};

int main(int count, char **names) {
    (void)count;
    be(states, sizeof states / sizeof *states, names);
}
