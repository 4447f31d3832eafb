/* multicast: datagrams to the groups that sockets are members of go on arriving, by the device that was
 * chosen by its number or address, and those that a filter keeps out stay out; over both IPs. */
#include "specimen.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#define PORT 5353
#define PORT6 5354
#define GROUP4 "239.1.2.3"
#define FILTERED "239.1.2.4"
#define GROUP6 "ff12::123"
#define TTL 9
#define WITHIN_MS 1000
#define ATTEMPTS 5

static int receiver, sender, filtered, receiver6, sender6;

static struct sockaddr_in to4(const char *group) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr = {inet_addr(group)}};
}

static struct sockaddr_in6 to6(const char *group) {
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = htons(PORT6)};
    inet_pton(AF_INET6, group, &to.sin6_addr);
    return to;
}

static void drain(int socket) {
    char buffer[16];
    while (recv(socket, buffer, sizeof buffer, MSG_DONTWAIT) >= 0) continue;
}

static int arrives(int socket, int within_ms) {
    struct pollfd wanted = {.fd = socket, .events = POLLIN};
    char buffer[16];
    while (poll(&wanted, 1, within_ms) < 0 && errno == EINTR) continue;
    return recv(socket, buffer, sizeof buffer, MSG_DONTWAIT) == 1;
}

static void send_to(int socket, const void *address, size_t length) {
    if (sendto(socket, "x", 1, 0, address, length) != 1) bad("send: %s", strerror(errno));
}

/* What is on its way at the freeze is lost, as any datagram may be: it is sent again. */
static int gets_through(int from, int to, const void *address, size_t length) {
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        send_to(from, address, length);
        if (arrives(to, WITHIN_MS)) return 1;
    }
    return 0;
}

static void check(void) {
    struct sockaddr_in group = to4(GROUP4), other = to4(FILTERED);
    struct sockaddr_in6 group6 = to6(GROUP6);
    drain(receiver), drain(filtered), drain(receiver6);
    if (!gets_through(sender, receiver, &group, sizeof group)) bad("nothing arrives in " GROUP4);
    send_to(sender, &other, sizeof other);
    if (arrives(filtered, 1)) bad("what the filter keeps out arrives in " FILTERED);
    if (!gets_through(sender6, receiver6, &group6, sizeof group6)) bad("nothing arrives in " GROUP6);
    int ttl = 0;
    socklen_t length = sizeof ttl;
    getsockopt(sender, IPPROTO_IP, IP_MULTICAST_TTL, &ttl, &length);
    if (ttl != TTL) bad("IP_MULTICAST_TTL is %d", ttl);
}

static int bound4(const char *address) {
    int made = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in own = to4(address);
    must(bind(made, (struct sockaddr *)&own, sizeof own) == 0, "bind");
    return made;
}

static void join(int socket, const char *device, int level, const void *group, size_t length) {
    struct group_req request = {.gr_interface = if_nametoindex(device)};
    memcpy(&request.gr_group, group, length);
    must(setsockopt(socket, level, MCAST_JOIN_GROUP, &request, sizeof request) == 0, "MCAST_JOIN_GROUP");
}

/* Takes nothing of the group but from an address that nobody has. */
static void filter(int socket, const struct sockaddr_in *group) {
    struct sockaddr_in source = to4("192.0.2.77");
    struct group_source_req request = {.gsr_interface = if_nametoindex("lo")};
    memcpy(&request.gsr_group, group, sizeof *group);
    memcpy(&request.gsr_source, &source, sizeof source);
    must(setsockopt(socket, IPPROTO_IP, MCAST_JOIN_SOURCE_GROUP, &request, sizeof request) == 0, "a source");
}

int main(void) {
    begin();
    int ttl = TTL, eth0 = if_nametoindex("eth0");
    struct ip_mreqn by = {.imr_ifindex = if_nametoindex("lo")};
    struct sockaddr_in group = to4(GROUP4), other = to4(FILTERED);
    struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons(PORT6)}, group6 = to6(GROUP6);
    receiver = bound4(GROUP4);
    filtered = bound4(FILTERED);
    sender = socket(AF_INET, SOCK_DGRAM, 0);
    receiver6 = socket(AF_INET6, SOCK_DGRAM, 0);
    sender6 = socket(AF_INET6, SOCK_DGRAM, 0);
    must(bind(receiver6, (struct sockaddr *)&any6, sizeof any6) == 0, "bind");
    join(receiver, "lo", IPPROTO_IP, &group, sizeof group);
    join(receiver6, "eth0", IPPROTO_IPV6, &group6, sizeof group6);
    filter(filtered, &other);
    must(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &by, sizeof by) == 0, "IP_MULTICAST_IF");
    must(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_TTL, &ttl, sizeof ttl) == 0, "IP_MULTICAST_TTL");
    must(setsockopt(sender6, IPPROTO_IPV6, IPV6_MULTICAST_IF, &eth0, sizeof eth0) == 0, "IPV6_MULTICAST_IF");
    rounds(check);
}
