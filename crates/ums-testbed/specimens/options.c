/* options: what a program has set on its sockets is as it was: UDP over both IPs, TCP listening, connected
 * and fresh. An option that this kernel does not take is left out. */
#include "specimen.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sys/socket.h>
#include <sys/time.h>

enum kind { UDP4, UDP6, LISTENER, CONNECTED, FRESH, KINDS };

static struct option {
    enum kind on;
    int level, name, value;
    const char *text;
    int is_set, was;
} options[] = {
#define OPTION(kind, level, name, value) {kind, level, name, value, #kind " " #name, 0, 0}
    OPTION(UDP4, IPPROTO_IP, IP_PKTINFO, 1),
    OPTION(UDP4, IPPROTO_IP, IP_RECVTTL, 1),
    OPTION(UDP4, IPPROTO_IP, IP_RECVTOS, 1),
    OPTION(UDP4, IPPROTO_IP, IP_RECVERR, 1),
    OPTION(UDP4, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO),
    OPTION(UDP4, IPPROTO_IP, IP_TOS, 0x10),
    OPTION(UDP4, IPPROTO_IP, IP_TTL, 33),
    OPTION(UDP4, IPPROTO_IP, IP_MULTICAST_LOOP, 0),
    OPTION(UDP4, IPPROTO_IP, IP_MULTICAST_TTL, 7),
    OPTION(UDP4, IPPROTO_IP, IP_FREEBIND, 1),
    OPTION(UDP4, SOL_SOCKET, SO_BROADCAST, 1),
    OPTION(UDP4, SOL_SOCKET, SO_TIMESTAMP, 1),
    OPTION(UDP4, SOL_SOCKET, SO_RXQ_OVFL, 1),
    OPTION(UDP4, SOL_SOCKET, SO_PRIORITY, 3),
    OPTION(UDP4, SOL_SOCKET, SO_RCVLOWAT, 5),
    OPTION(UDP4, SOL_SOCKET, SO_RCVBUF, 100000),
    OPTION(UDP4, IPPROTO_UDP, UDP_SEGMENT, 1200),
    OPTION(UDP4, IPPROTO_UDP, UDP_GRO, 1),
    OPTION(UDP6, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1),
    OPTION(UDP6, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1),
    OPTION(UDP6, IPPROTO_IPV6, IPV6_RECVTCLASS, 1),
    OPTION(UDP6, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 44),
    OPTION(UDP6, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 5),
    OPTION(UDP6, IPPROTO_IPV6, IPV6_TCLASS, 0x20),
    OPTION(UDP6, IPPROTO_IPV6, IPV6_RECVERR, 1),
    OPTION(LISTENER, IPPROTO_TCP, TCP_DEFER_ACCEPT, 7),
    OPTION(LISTENER, IPPROTO_TCP, TCP_FASTOPEN, 16),
    OPTION(LISTENER, IPPROTO_TCP, TCP_NODELAY, 1),
    OPTION(LISTENER, IPPROTO_TCP, TCP_USER_TIMEOUT, 30000),
    OPTION(LISTENER, IPPROTO_TCP, TCP_KEEPIDLE, 77),
    OPTION(LISTENER, IPPROTO_TCP, TCP_KEEPINTVL, 11),
    OPTION(LISTENER, IPPROTO_TCP, TCP_KEEPCNT, 4),
    OPTION(LISTENER, IPPROTO_TCP, TCP_MAXSEG, 1000),
    OPTION(LISTENER, IPPROTO_TCP, TCP_SYNCNT, 3),
    OPTION(LISTENER, IPPROTO_TCP, TCP_LINGER2, 20),
    OPTION(LISTENER, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16384),
    OPTION(LISTENER, SOL_SOCKET, SO_KEEPALIVE, 1),
    OPTION(LISTENER, SOL_SOCKET, SO_REUSEPORT, 1),
    OPTION(CONNECTED, IPPROTO_TCP, TCP_NODELAY, 1),
    OPTION(CONNECTED, IPPROTO_TCP, TCP_KEEPIDLE, 77),
    OPTION(CONNECTED, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16384),
    OPTION(CONNECTED, IPPROTO_TCP, TCP_WINDOW_CLAMP, 30000),
    OPTION(CONNECTED, IPPROTO_TCP, TCP_USER_TIMEOUT, 30000),
    OPTION(CONNECTED, SOL_SOCKET, SO_KEEPALIVE, 1),
    OPTION(CONNECTED, SOL_SOCKET, SO_OOBINLINE, 1),
    OPTION(CONNECTED, SOL_SOCKET, SO_RCVLOWAT, 9),
    OPTION(CONNECTED, IPPROTO_IP, IP_RECVTTL, 1),
    OPTION(FRESH, IPPROTO_TCP, TCP_NODELAY, 1),
    OPTION(FRESH, IPPROTO_TCP, TCP_KEEPIDLE, 77),
};
#define OPTIONS (sizeof options / sizeof *options)

static int sockets[KINDS];

static int value_of(const struct option *option) {
    int value = 0;
    socklen_t length = sizeof value;
    if (getsockopt(sockets[option->on], option->level, option->name, &value, &length) != 0) return -errno;
    return value;
}

static void check(void) {
    for (size_t n = 0; n < OPTIONS; n++) {
        int is = value_of(&options[n]);
        if (options[n].is_set && is != options[n].was)
            bad("%s is %d, was %d", options[n].text, is, options[n].was);
    }
    struct linger linger = {0};
    socklen_t length = sizeof linger;
    getsockopt(sockets[CONNECTED], SOL_SOCKET, SO_LINGER, &linger, &length);
    if (!linger.l_onoff || linger.l_linger != 13) bad("SO_LINGER is %d %d", linger.l_onoff, linger.l_linger);
    struct timeval patience = {0};
    length = sizeof patience;
    getsockopt(sockets[CONNECTED], SOL_SOCKET, SO_RCVTIMEO, &patience, &length);
    if (patience.tv_sec != 5) bad("SO_RCVTIMEO is %ld s", (long)patience.tv_sec);
    char text[32] = "";
    length = sizeof text;
    getsockopt(sockets[LISTENER], IPPROTO_TCP, TCP_CONGESTION, text, &length);
    if (strcmp(text, "reno") != 0) bad("TCP_CONGESTION is %s", text);
    memset(text, 0, sizeof text);
    length = sizeof text;
    getsockopt(sockets[UDP4], SOL_SOCKET, SO_BINDTODEVICE, text, &length);
    if (strcmp(text, "lo") != 0) bad("SO_BINDTODEVICE is `%s`", text);
    int segment = 0;
    length = sizeof segment;
    getsockopt(sockets[CONNECTED], IPPROTO_TCP, TCP_MAXSEG, &segment, &length);
    if (segment < 1000) bad("the connection sends segments of %d bytes", segment);
}

static void connect_to_itself(void) {
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(7103), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    must(bind(sockets[LISTENER], (struct sockaddr *)&own, sizeof own) == 0, "bind");
    must(listen(sockets[LISTENER], 5) == 0, "listen");
    must(connect(sockets[CONNECTED], (struct sockaddr *)&own, sizeof own) == 0, "connect");
    must(accept(sockets[LISTENER], NULL, NULL) >= 0, "accept");
}

int main(void) {
    begin();
    sockets[UDP4] = socket(AF_INET, SOCK_DGRAM, 0);
    sockets[UDP6] = socket(AF_INET6, SOCK_DGRAM, 0);
    for (int kind = LISTENER; kind < KINDS; kind++) sockets[kind] = socket(AF_INET, SOCK_STREAM, 0);
    connect_to_itself();
    struct linger linger = {1, 13};
    struct timeval patience = {5, 0};
    must(setsockopt(sockets[CONNECTED], SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0, "SO_LINGER");
    must(setsockopt(sockets[CONNECTED], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0, "SO_RCVTIMEO");
    must(setsockopt(sockets[LISTENER], IPPROTO_TCP, TCP_CONGESTION, "reno", 4) == 0, "TCP_CONGESTION");
    must(setsockopt(sockets[UDP4], SOL_SOCKET, SO_BINDTODEVICE, "lo", 3) == 0, "SO_BINDTODEVICE");
    for (size_t n = 0; n < OPTIONS; n++) {
        struct option *option = &options[n];
        int set = setsockopt(sockets[option->on], option->level, option->name, &option->value, sizeof option->value);
        option->is_set = set == 0;
        option->was = value_of(option);
    }
    rounds(check);
}
