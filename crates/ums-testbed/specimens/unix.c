/* unix: unix sockets in one state, made again in each round and found so in the next.
 *
 * Argument: the name of the state, as in the table at the end. */
#include "specimen.h"
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#define PIECES 3

static int a[2], b[2], listener, extra[PIECES];
/* Less than what a socket may hold by default, where a page counts with its descriptor. */
static char big[150000];

static void pair(int type, int *ends) { must(socketpair(AF_UNIX, type, 0, ends) == 0, "socketpair"); }

static int fresh(int type) {
    int made = socket(AF_UNIX, type, 0);
    must(made >= 0, "socket");
    return made;
}

/* An address; a name that begins with `@` is abstract. */
static socklen_t address(struct sockaddr_un *to, const char *name) {
    memset(to, 0, sizeof *to);
    to->sun_family = AF_UNIX;
    strcpy(to->sun_path, name);
    if (name[0] != '@') return sizeof *to;
    to->sun_path[0] = 0;
    return offsetof(struct sockaddr_un, sun_path) + strlen(name);
}

static void name_it(int socket, const char *name) {
    struct sockaddr_un to;
    socklen_t length = address(&to, name);
    must(bind(socket, (void *)&to, length) == 0, name);
}

static void join(int socket, const char *name) {
    struct sockaddr_un to;
    socklen_t length = address(&to, name);
    must(connect(socket, (void *)&to, length) == 0, name);
}

static void put(int socket, const char *text) {
    if (send(socket, text, strlen(text), MSG_NOSIGNAL) != (ssize_t)strlen(text)) bad("send: %s", strerror(errno));
}

static void expect(int socket, const char *text) {
    char got[256] = "";
    ssize_t length = recv(socket, got, sizeof got - 1, MSG_DONTWAIT);
    if (length < 0) bad("`%s` is not there: %s", text, strerror(errno));
    else if (strcmp(got, text) != 0) bad("`%s` is there and not `%s`", got, text);
}

static void expect_end(int socket) {
    char got;
    ssize_t length = recv(socket, &got, 1, MSG_DONTWAIT);
    if (length != 0) bad("no end: %zd %s", length, length < 0 ? strerror(errno) : "");
}

static void expect_name(int socket, const char *wanted, int of_peer) {
    struct sockaddr_un is, should;
    socklen_t length = sizeof is, expected = address(&should, wanted);
    memset(&is, 0, sizeof is);
    int done = of_peer ? getpeername(socket, (void *)&is, &length) : getsockname(socket, (void *)&is, &length);
    if (is.sun_path[0] == 0 && length != expected) done = -1;
    if (done || memcmp(is.sun_path, should.sun_path, sizeof should.sun_path))
        bad("the name is `%s` (%u) and not `%s`", is.sun_path[0] ? is.sun_path : is.sun_path + 1, length, wanted);
}

/* Sends a descriptor, or credentials. */
static void put_with(int socket, int type, const void *what, size_t size) {
    char control[CMSG_SPACE(64)] = "";
    struct iovec text = {"F", 1};
    struct msghdr message = {.msg_iov = &text, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(size)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = type, .cmsg_len = CMSG_LEN(size)};
    memcpy(CMSG_DATA(header), what, size);
    if (sendmsg(socket, &message, 0) != 1) bad("sendmsg: %s", strerror(errno));
}

static int take_with(int socket, int type, void *what, size_t size) {
    char control[CMSG_SPACE(256)] = "", text[64];
    struct iovec into = {text, sizeof text};
    struct msghdr message = {.msg_iov = &into, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(socket, &message, MSG_DONTWAIT) <= 0) return -1;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_type != type) continue;
        memcpy(what, CMSG_DATA(header), size);
        return 0;
    }
    return -1;
}

static int filled_pipe(void) {
    int ends[2];
    must(pipe(ends) == 0 && write(ends[1], "inside", 6) == 6, "pipe");
    close(ends[1]);
    return ends[0];
}

static void expect_pipe(int end) {
    char got[16] = "";
    if (read(end, got, sizeof got) != 6 || strcmp(got, "inside")) bad("the descriptor holds `%s`", got);
    close(end);
}

/* Descriptors in flight. */
static void send_rights(void) {
    int end = filled_pipe();
    put_with(a[0], SCM_RIGHTS, &end, sizeof end);
    close(end);
}
static void rights_begin(void) { pair(SOCK_STREAM, a); send_rights(); }
static void rights(void) {
    int end;
    if (take_with(a[1], SCM_RIGHTS, &end, sizeof end)) bad("no descriptor: %s", strerror(errno));
    else expect_pipe(end);
    send_rights();
}

/* A socket in flight, itself with a descriptor in flight. */
static void send_nested(void) {
    int inner[2], end = filled_pipe();
    pair(SOCK_STREAM, inner);
    put_with(inner[0], SCM_RIGHTS, &end, sizeof end);
    put_with(a[0], SCM_RIGHTS, &inner[1], sizeof inner[1]);
    close(end), close(inner[0]), close(inner[1]);
}
static void nested_begin(void) { pair(SOCK_STREAM, a); send_nested(); }
static void nested(void) {
    int inner, end;
    if (take_with(a[1], SCM_RIGHTS, &inner, sizeof inner)) bad("no socket: %s", strerror(errno));
    else {
        if (take_with(inner, SCM_RIGHTS, &end, sizeof end)) bad("nothing in it: %s", strerror(errno));
        else expect_pipe(end);
        close(inner);
    }
    send_nested();
}

/* Both ends of a socket in flight through each other. */
static void send_cycle(void) { put_with(a[0], SCM_RIGHTS, &a[1], sizeof a[1]); }
static void cycle_begin(void) { pair(SOCK_DGRAM, a); send_cycle(); }
static void cycle(void) {
    int end;
    if (take_with(a[1], SCM_RIGHTS, &end, sizeof end)) bad("no socket: %s", strerror(errno));
    else { put(a[0], "through"); expect(end, "through"); close(end); }
    send_cycle();
}

/* Messages with the credentials of their senders: the service's first process and a child of it. */
static int type_of_credentials, again[2];
static pid_t child;
static void send_credentials(void) {
    char done;
    put(a[0], "plain");
    must(write(again[0], "g", 1) == 1 && read(again[0], &done, 1) == 1, "the child");
    int end = filled_pipe();
    put_with(a[0], SCM_RIGHTS, &end, sizeof end);
    close(end);
}
static void send_when_told(void) {
    char go;
    while (read(again[1], &go, 1) == 1) {
        put(a[0], "by the child");
        must(write(again[1], "d", 1) == 1, "write");
    }
}
static void credentials_begin(void) {
    int on = 1;
    pair(type_of_credentials, a);
    must(setsockopt(a[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0, "SO_PASSCRED");
    pair(SOCK_STREAM, again);
    if ((child = fork()) == 0) send_when_told();
    send_credentials();
}
static void credentials(void) {
    struct ucred is;
    if (take_with(a[1], SCM_CREDENTIALS, &is, sizeof is)) bad("no credentials: %s", strerror(errno));
    else if (is.pid != getpid() || is.uid != getuid()) bad("the sender is %d, user %u", is.pid, is.uid);
    if (take_with(a[1], SCM_CREDENTIALS, &is, sizeof is)) bad("no credentials of the child: %s", strerror(errno));
    else if (is.pid != child) bad("the child is %d and not %d", is.pid, child);
    int end;
    if (take_with(a[1], SCM_RIGHTS, &end, sizeof end)) bad("no descriptor: %s", strerror(errno));
    else expect_pipe(end);
    send_credentials();
}
static void credentials_dgram_begin(void) { type_of_credentials = SOCK_DGRAM; credentials_begin(); }
static void credentials_stream_begin(void) { type_of_credentials = SOCK_STREAM; credentials_begin(); }

/* Names of a connection's ends. */
static const char *path_of_listener;
static void listen_at(const char *path) {
    path_of_listener = path;
    listener = fresh(SOCK_STREAM);
    if (path[0] != '@') unlink(path);
    name_it(listener, path);
    must(listen(listener, 8) == 0, "listen");
    must(fcntl(listener, F_SETFL, O_NONBLOCK) == 0, "O_NONBLOCK");
}
static void peer_name_begin(void) {
    listen_at("@listener");
    a[0] = fresh(SOCK_STREAM);
    join(a[0], "@listener");
    a[1] = accept(listener, NULL, NULL);
}
static void peer_name(void) { put(a[0], "there"); expect(a[1], "there"); expect_name(listener, "@listener", 0); }
/* Connections that wait to be accepted. */
static void wait_for_accept(const char *with, int and_close) {
    a[0] = fresh(SOCK_STREAM);
    join(a[0], path_of_listener);
    if (with) put(a[0], with);
    if (and_close) close(a[0]);
}
static void waiting_data_begin(void) { listen_at("/srv-listener"); wait_for_accept("early", 0); }
static void waiting_empty_begin(void) { listen_at("/srv-listener"); wait_for_accept(NULL, 0); }
static void waiting_closed_begin(void) { listen_at("/srv-listener"); wait_for_accept(NULL, 1); }
static int take_waiting(void) {
    int accepted = accept(listener, NULL, NULL);
    if (accepted < 0) bad("accept: %s", strerror(errno));
    return accepted;
}
/* Who waits goes on waiting: it is refused for what lasts. */
static void waits_on(void) {
    if (listen(listener, 8) != 0) bad("listen: %s", strerror(errno));
}
static void waiting_empty(void) {
    int end = take_waiting();
    put(a[0], "late"); expect(end, "late");
    close(end), close(a[0]);
    wait_for_accept(NULL, 0);
}

/* Messages that are not read: one without content, and others behind it, which stay where it is not the first. */
static void send_hollow(const int ends[2]) {
    put(ends[0], "one"); put(ends[0], ""); put(ends[0], "two"); put(ends[0], "");
}
static int alone[2];
static void hollow_begin(void) {
    pair(SOCK_DGRAM, alone); pair(SOCK_DGRAM, a); pair(SOCK_SEQPACKET, b);
    put(alone[0], "");
    send_hollow(a), send_hollow(b);
}
static void hollow_of(const int ends[2]) {
    char got[16], all[64] = "";
    ssize_t length;
    while ((length = recv(ends[1], got, sizeof got, MSG_DONTWAIT)) >= 0) strncat(all, got, (size_t)length);
    if (strcmp(all, "onetwo") != 0) bad("what is between messages without content is `%s`", all);
    send_hollow(ends);
}
static void hollow(void) { hollow_of(a), hollow_of(b); }
/* A peer that has been closed. */
static void orphan_begin(void) {
    pair(SOCK_DGRAM, a);
    close(a[1]);
}
static void orphan(void) {
    if (send(a[0], "x", 1, MSG_DONTWAIT) >= 0) bad("it is sent to nobody");
    close(a[0]);
    orphan_begin();
}
/* One whose sender has a name. What becomes of that is not checked. */
static void sender_begin(void) {
    listener = fresh(SOCK_DGRAM);
    name_it(listener, "@unread");
    extra[0] = fresh(SOCK_DGRAM);
    name_it(extra[0], "@sender");
    join(extra[0], "@unread");
    put(extra[0], "message");
}
static void unchecked(void) {}

/* Several senders to one socket. */
static const char *const senders[PIECES] = {"@sender-0", "@sender-1", "@sender-2"};
static void from_senders(void) {
    for (int at = 0; at < PIECES; at++) put(extra[at], senders[at]);
}
static void many_unnamed_begin(void) {
    unlink("/srv-collector");
    listener = fresh(SOCK_DGRAM);
    name_it(listener, "/srv-collector");
    for (int at = 0; at < PIECES; at++) { extra[at] = fresh(SOCK_DGRAM); join(extra[at], "/srv-collector"); }
    from_senders();
}
static void many_unnamed(void) {
    for (int at = 0; at < PIECES; at++) expect(listener, senders[at]);
    from_senders();
}

/* The other end is closed and left something. */
static void closed_once(int type, int *ends) { pair(type, ends); put(ends[0], "left"); close(ends[0]); }
static void closed_begin(void) { closed_once(SOCK_STREAM, a); closed_once(SOCK_DGRAM, b); closed_once(SOCK_SEQPACKET, extra); }
static void closed(void) {
    expect(a[1], "left"); expect_end(a[1]); close(a[1]);
    expect(b[1], "left"); close(b[1]);
    expect(extra[1], "left"); expect_end(extra[1]); close(extra[1]);
    closed_begin();
}

/* Closed in one direction, with something left in both. */
static void half_begin(void) {
    pair(SOCK_STREAM, a); put(a[0], "left"); must(shutdown(a[0], SHUT_WR) == 0, "shutdown");
    pair(SOCK_STREAM, b); put(b[0], "left"); must(shutdown(b[1], SHUT_RD) == 0, "shutdown");
}
static void half(void) {
    expect(a[1], "left"); expect_end(a[1]);
    put(a[1], "answer"); expect(a[0], "answer");
    if (send(a[0], "x", 1, MSG_NOSIGNAL) >= 0) bad("what was shut is open");
    expect(b[1], "left"); expect_end(b[1]);
    if (send(b[0], "x", 1, MSG_NOSIGNAL) >= 0) bad("what the reader has shut is open");
    put(b[1], "answer"); expect(b[0], "answer");
    close(a[0]), close(a[1]), close(b[0]), close(b[1]);
    half_begin();
}

/* A queue that is full, and a child that waits to write on. */
static unsigned char next_byte;
static void full_begin(void) {
    pair(SOCK_STREAM, a);
    if (fork() == 0) {
        unsigned char piece[4096], value = 0;
        close(a[1]);
        for (;;) {
            for (size_t at = 0; at < sizeof piece; at++) piece[at] = value++;
            if (write(a[0], piece, sizeof piece) != sizeof piece) { bad("the writer: %s", strerror(errno)); _exit(1); }
        }
    }
}
static void full(void) {
    for (int round = 0; round < 8; round++) {
        ssize_t length = recv(a[1], big, 16384, 0);
        for (ssize_t at = 0; at < length; at++)
            if ((unsigned char)big[at] != next_byte++) { bad("another byte in the stream"); next_byte = big[at] + 1; }
    }
}

/* Queues that are larger than the default, and messages larger than the reader's own buffer. */
static void send_large(void) {
    memset(big, 'l', sizeof big);
    if (send(a[0], big, sizeof big, 0) != sizeof big) bad("send: %s", strerror(errno));
    for (int at = 0; at < PIECES; at++)
        if (send(b[0], big, 60000 + at, 0) != 60000 + at) bad("send a message: %s", strerror(errno));
}
static void large_begin(void) {
    int most = 1 << 20, little = 8192;
    pair(SOCK_STREAM, a); pair(SOCK_DGRAM, b);
    must(setsockopt(a[0], SOL_SOCKET, SO_SNDBUF, &most, sizeof most) == 0, "SO_SNDBUF");
    must(setsockopt(b[0], SOL_SOCKET, SO_SNDBUF, &most, sizeof most) == 0, "SO_SNDBUF");
    must(setsockopt(b[1], SOL_SOCKET, SO_SNDBUF, &little, sizeof little) == 0, "SO_SNDBUF");
    send_large();
}
static void large(void) {
    size_t read = 0;
    for (ssize_t length; read < sizeof big && (length = recv(a[1], big + read, sizeof big - read, MSG_DONTWAIT)) > 0;) read += length;
    if (read != sizeof big) bad("%zu bytes of %zu", read, sizeof big);
    for (int at = 0; at < PIECES; at++) {
        ssize_t length = recv(b[1], big, sizeof big, MSG_DONTWAIT);
        if (length != 60000 + at) bad("message %d has %zd bytes", at, length);
    }
    send_large();
}

/* Sequenced packets keep their borders. */
static void packets_begin(void) { pair(SOCK_SEQPACKET, a); put(a[0], "ab"); put(a[0], "cde"); }
static void packets(void) { expect(a[1], "ab"); expect(a[1], "cde"); put(a[0], "ab"); put(a[0], "cde"); }

/* A name that was removed, with its directory; another one bound to the name since then. */
static void removed_begin(void) {
    must(mkdir("/srv", 0755) == 0 && mkdir("/srv/gone", 0700) == 0, "mkdir");
    listen_at("/srv/gone/listener");
    a[0] = fresh(SOCK_STREAM);
    join(a[0], "/srv/gone/listener");
    a[1] = accept(listener, NULL, NULL);
    must(unlink("/srv/gone/listener") == 0 && rmdir("/srv/gone") == 0, "rmdir");
    extra[0] = fresh(SOCK_STREAM); name_it(extra[0], "/srv-again"); must(listen(extra[0], 1) == 0, "listen");
    must(unlink("/srv-again") == 0, "unlink");
    extra[1] = fresh(SOCK_STREAM); name_it(extra[1], "/srv-again"); must(listen(extra[1], 1) == 0, "listen");
    extra[2] = fresh(SOCK_DGRAM); name_it(extra[2], "/srv-datagram");
    b[0] = fresh(SOCK_DGRAM); join(b[0], "/srv-datagram"); must(unlink("/srv-datagram") == 0, "unlink");
    put(b[0], "queued");
}
static void removed(void) {
    put(a[0], "there"); expect(a[1], "there");
    if (!access("/srv/gone", F_OK)) bad("the removed directory is back");
    if (!access("/srv-datagram", F_OK)) bad("the removed socket is back");
    expect_name(listener, "/srv/gone/listener", 0);
    expect(extra[2], "queued"); put(b[0], "queued");
    int client = fresh(SOCK_STREAM);
    struct sockaddr_un to;
    socklen_t length = address(&to, "/srv-again");
    if (connect(client, (void *)&to, length)) bad("connect: %s", strerror(errno));
    int end = accept(extra[1], NULL, NULL);
    if (end < 0) bad("accept: %s", strerror(errno));
    close(end), close(client);
}

/* A name relative to a directory that is not the current one any more. */
static void relative_begin(void) {
    must(mkdir("/srv-below", 0700) == 0 && chdir("/srv-below") == 0, "chdir");
    listen_at("listener");
    a[0] = fresh(SOCK_STREAM); join(a[0], "listener"); a[1] = accept(listener, NULL, NULL);
    must(chdir("/") == 0, "chdir");
}
static void relative(void) {
    put(a[0], "there"); expect(a[1], "there");
    expect_name(listener, "listener", 0);
    int client = fresh(SOCK_STREAM);
    struct sockaddr_un to;
    socklen_t length = address(&to, "/srv-below/listener");
    if (connect(client, (void *)&to, length)) bad("connect: %s", strerror(errno));
    int end = accept(listener, NULL, NULL);
    if (end < 0) bad("accept: %s", strerror(errno));
    close(end), close(client);
}

/* Abstract names: with zeros inside, as long as can be, given by the kernel. */
static struct sockaddr_un names[PIECES];
static socklen_t lengths[PIECES];
static void binary_begin(void) {
    for (int at = 0; at < PIECES; at++) {
        extra[at] = fresh(SOCK_STREAM);
        names[at].sun_family = AF_UNIX;
        lengths[at] = sizeof names[at];
        memset(names[at].sun_path, at == 1 ? 'x' : 0, sizeof names[at].sun_path);
        names[at].sun_path[0] = 0;
        if (at == 0) names[at].sun_path[3] = 'z', lengths[at] = offsetof(struct sockaddr_un, sun_path) + 6;
        if (at == 2) lengths[at] = sizeof(sa_family_t);
        must(bind(extra[at], (void *)&names[at], lengths[at]) == 0, "bind");
        must(listen(extra[at], 2) == 0, "listen");
        lengths[at] = sizeof names[at];
        must(getsockname(extra[at], (void *)&names[at], &lengths[at]) == 0, "getsockname");
    }
}
static void binary(void) {
    for (int at = 0; at < PIECES; at++) {
        int client = fresh(SOCK_STREAM);
        if (connect(client, (void *)&names[at], lengths[at])) bad("connect %d: %s", at, strerror(errno));
        struct sockaddr_un is;
        socklen_t length = sizeof is;
        getsockname(extra[at], (void *)&is, &length);
        if (length != lengths[at] || memcmp(&is, &names[at], length)) bad("name %d", at);
        int end = accept(extra[at], NULL, NULL);
        close(end), close(client);
    }
}

/* An offset to peek from. */
static void peek_begin(void) {
    int offset = 2;
    pair(SOCK_STREAM, a); put(a[0], "abcdef");
    must(setsockopt(a[1], SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) == 0, "SO_PEEK_OFF");
}
static void peek(void) {
    int offset = 0;
    socklen_t length = sizeof offset;
    char got[16] = "";
    getsockopt(a[1], SOL_SOCKET, SO_PEEK_OFF, &offset, &length);
    if (offset != 2) bad("the offset is %d", offset);
    if (recv(a[1], got, 2, MSG_PEEK | MSG_DONTWAIT) != 2 || strcmp(got, "cd")) bad("`%s` is seen", got);
    close(a[0]), close(a[1]);
    peek_begin();
}

/* An urgent byte. What becomes of it is not checked. */
static void urgent_begin(void) {
    pair(SOCK_STREAM, a);
    put(a[0], "before");
    must(send(a[0], "!", 1, MSG_OOB) == 1, "MSG_OOB");
    put(a[0], "after");
}

/* A datagram socket that is connected to itself. */
static void oneself_begin(void) {
    a[0] = fresh(SOCK_DGRAM); name_it(a[0], "@oneself"); join(a[0], "@oneself"); put(a[0], "echo");
}
static void oneself(void) { expect(a[0], "echo"); put(a[0], "echo"); }

/* Whom the kernel names at the other end. */
static struct ucred first;
static void peer_credentials_begin(void) {
    listen_at("@credentials");
    if (fork() == 0) {
        a[0] = fresh(SOCK_STREAM);
        join(a[0], "@credentials");
        for (;;) pause();
    }
    struct pollfd waiting = {.fd = listener, .events = POLLIN};
    must(poll(&waiting, 1, 10000) == 1, "poll");
    a[1] = accept(listener, NULL, NULL);
    socklen_t length = sizeof first;
    must(getsockopt(a[1], SOL_SOCKET, SO_PEERCRED, &first, &length) == 0, "SO_PEERCRED");
}
static void peer_credentials(void) {
    struct ucred is;
    socklen_t length = sizeof is;
    getsockopt(a[1], SOL_SOCKET, SO_PEERCRED, &is, &length);
    if (is.uid != first.uid || is.gid != first.gid) bad("user %u, group %u", is.uid, is.gid);
}
static const struct state states[] = {
    {"rights", rights_begin, rights}, {"nested", nested_begin, nested}, {"cycle", cycle_begin, cycle},
    {"credentials", credentials_dgram_begin, credentials}, {"credentials-stream", credentials_stream_begin, credentials},
    {"peer-name", peer_name_begin, peer_name},
    {"waiting-data", waiting_data_begin, waits_on}, {"waiting-empty", waiting_empty_begin, waiting_empty},
    {"waiting-closed", waiting_closed_begin, waits_on}, {"orphan", orphan_begin, orphan},
    {"hollow", hollow_begin, hollow}, {"sender", sender_begin, unchecked},
    {"many-unnamed", many_unnamed_begin, many_unnamed}, {"closed", closed_begin, closed},
    {"half", half_begin, half}, {"full", full_begin, full}, {"large", large_begin, large},
    {"packets", packets_begin, packets}, {"removed", removed_begin, removed}, {"relative", relative_begin, relative},
    {"binary", binary_begin, binary}, {"peek", peek_begin, peek}, {"urgent", urgent_begin, unchecked},
    {"oneself", oneself_begin, oneself},
    {"peer-credentials", peer_credentials_begin, peer_credentials},
};

int main(int count, char **names) {
    (void)count;
    be(states, sizeof states / sizeof *states, names);
}
