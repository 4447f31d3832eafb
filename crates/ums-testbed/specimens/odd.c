/* odd: a socket in a state that a move does not keep, by its name: an urgent byte that was not read,
 * memberships of netlink that CRIU can't put into an address, a ring of packets, a datagram that is
 * never read, keys, a shared port. */
#include "specimen.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define PORT 7130

static struct sockaddr_in own(void) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

static void urgent(void) {
    struct sockaddr_in at = own();
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    must(bind(listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(listener, 1) == 0, "listen");
    must(connect(client, (struct sockaddr *)&at, sizeof at) == 0, "connect");
    must(accept(listener, NULL, NULL) >= 0, "accept");
    must(send(client, "abc", 3, 0) == 3 && send(client, "U", 1, MSG_OOB) == 1, "send");
}

static void member(int bound, int group) {
    int made = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    if (bound) must(bind(made, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    must(setsockopt(made, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) == 0, "a membership");
}

static void ring(void) {
    int made = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_LOOP));
    struct tpacket_req shape = {.tp_block_size = 65536, .tp_block_nr = 1, .tp_frame_size = 2048, .tp_frame_nr = 32};
    must(setsockopt(made, SOL_PACKET, PACKET_RX_RING, &shape, sizeof shape) == 0, "PACKET_RX_RING");
    void *mapped = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, made, 0);
    must(mapped != MAP_FAILED, "mmap");
}

static void unread(void) {
    struct sockaddr_in at = own();
    int made = socket(AF_INET, SOCK_DGRAM, 0);
    must(bind(made, (struct sockaddr *)&at, sizeof at) == 0, "bind");
    must(sendto(made, "x", 1, 0, (struct sockaddr *)&at, sizeof at) == 1, "send");
}

/* Segments are signed by a key (TCP_MD5SIG). A kernel may have none. */
static void md5(void) {
    struct sockaddr_in peer = own();
    struct { struct sockaddr_storage address; uint8_t flags, prefix; uint16_t length; uint32_t device; char key[80]; } with = {.length = 6, .key = "secret"};
    int made = socket(AF_INET, SOCK_STREAM, 0);
    memcpy(&with.address, &peer, sizeof peer);
    must(setsockopt(made, IPPROTO_TCP, 14 /* TCP_MD5SIG */, &with, sizeof with) == 0, "TCP_MD5SIG");
    must(bind(made, (struct sockaddr *)&peer, sizeof peer) == 0 && listen(made, 1) == 0, "listen");
}

/* Two that share a port: a program may choose between them. */
static void shared(void) {
    struct sockaddr_in at = own();
    for (int times = 0, on = 1; times < 2; times++) {
        int made = socket(AF_INET, SOCK_STREAM, 0);
        must(setsockopt(made, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0, "SO_REUSEPORT");
        must(bind(made, (struct sockaddr *)&at, sizeof at) == 0 && listen(made, 1) == 0, "listen");
    }
}

static void check(void) {}

int main(int count, char **arguments) {
    begin();
    const char *what = count > 1 ? arguments[1] : "";
    if (!strcmp(what, "urgent")) urgent();
    else if (!strcmp(what, "far-group")) member(1, RTNLGRP_BRVLAN);
    else if (!strcmp(what, "unbound")) member(0, RTNLGRP_LINK);
    else if (!strcmp(what, "ring")) ring();
    else if (!strcmp(what, "unread")) unread();
    else if (!strcmp(what, "signed")) md5();
    else if (!strcmp(what, "shared")) shared();
    else must(0, "a name");
    rounds(check);
}
