/* watches: descriptors that tell of something. Arguments: the states, by name. */
#include "specimen.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>

static void touch(const char *path) {
    int fd = open(path, O_CREAT | O_WRONLY, 0644);
    if (fd < 0 || write(fd, "x", 1) != 1) bad("touch %s: %s", path, strerror(errno));
    close(fd);
}

/* Events that wait, of those of this mask. */
static int told(int fd, uint32_t mask) {
    char buffer[8192];
    int count = 0;
    for (ssize_t length; (length = read(fd, buffer, sizeof buffer)) > 0;)
        for (char *at = buffer; at < buffer + length;) {
            struct inotify_event *event = (void *)at;
            count += (event->mask & mask) != 0;
            at += sizeof *event + event->len;
        }
    return count;
}

/* A watch that tells once, and is made again each time. */
static int notify;
static void arm(void) {
    must(inotify_add_watch(notify, "/data/once", IN_MODIFY | IN_ONESHOT) > 0, "IN_ONESHOT");
}
static void make_once(void) {
    notify = inotify_init1(IN_NONBLOCK);
    touch("/data/once");
    arm();
}
static void check_once(void) {
    touch("/data/once");
    if (told(notify, IN_MODIFY) != 1) bad("a watch does not tell");
    touch("/data/once");
    if (told(notify, IN_MODIFY) != 0) bad("IN_ONESHOT is forgotten");
    arm();
}

/* Only while the child has a name. */
static int excluding, child;
static void make_excluding(void) {
    must(mkdir("/data/excluding", 0755) == 0, "mkdir");
    excluding = inotify_init1(IN_NONBLOCK);
    must(inotify_add_watch(excluding, "/data/excluding", IN_MODIFY | IN_EXCL_UNLINK | IN_ONLYDIR) > 0, "IN_EXCL_UNLINK");
    child = open("/data/excluding/child", O_CREAT | O_RDWR, 0600);
    must(unlink("/data/excluding/child") == 0, "unlink");
}
static void check_excluding(void) {
    if (write(child, "x", 1) != 1) bad("write");
    if (told(excluding, IN_MODIFY) != 0) bad("IN_EXCL_UNLINK is forgotten");
    touch("/data/excluding/other");
    if (told(excluding, IN_MODIFY) == 0) bad("the watch does not tell");
}

/* Events that are not read, which is not checked. */
static int waiting;
static void make_waiting(void) {
    waiting = inotify_init1(IN_NONBLOCK);
    touch("/data/waiting");
    must(inotify_add_watch(waiting, "/data/waiting", IN_MODIFY) > 0, "inotify_add_watch");
}
static void check_waiting(void) { touch("/data/waiting"); }
/* Numbers of watches go on. */
static int numbered, number;
static void make_numbered(void) {
    numbered = inotify_init1(IN_NONBLOCK);
    touch("/data/numbered");
    for (int times = 0; times < 5; times++) {
        number = inotify_add_watch(numbered, "/data/numbered", IN_MODIFY);
        if (times < 4) inotify_rm_watch(numbered, number);
    }
    told(numbered, 0);
}
static void check_numbered(void) {
    if (inotify_add_watch(numbered, "/data/numbered", IN_MODIFY) != number) bad("the watch has another number");
}
/* A watch of a file that has no name any more. */
static int nameless, held;
static void make_nameless(void) {
    nameless = inotify_init1(IN_NONBLOCK);
    held = open("/data/held", O_CREAT | O_RDWR, 0600);
    must(inotify_add_watch(nameless, "/data/held", IN_MODIFY) > 0 && unlink("/data/held") == 0, "unlink");
}
static void check_nameless(void) {
    if (write(held, "x", 1) != 1 || told(nameless, IN_MODIFY) == 0) bad("the watch of a nameless file does not tell");
}

static int signals;
static void make_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 3);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signals = signalfd(-1, &set, SFD_NONBLOCK);
    sigqueue(getpid(), SIGRTMIN + 3, (union sigval){7});
}
static void check_signals(void) {
    struct signalfd_siginfo about;
    if (read(signals, &about, sizeof about) != sizeof about || about.ssi_signo != (uint32_t)SIGRTMIN + 3 || about.ssi_int != 7) bad("signalfd: %s", strerror(errno));
    sigqueue(getpid(), SIGRTMIN + 3, (union sigval){7});
}

/* epoll(7): armed and disarmed, by edge, nested, exclusive, of descriptors that are closed here. */
static int poller, outer, disarmed, edge, exclusive, other, third;
static void put(int fd) { eventfd_write(fd, 1); }
static void add(int to, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)fd << 32 | events >> 28};
    must(epoll_ctl(to, EPOLL_CTL_ADD, fd, &event) == 0, "EPOLL_CTL_ADD");
}
static int wait_for(int from, int fd) {
    struct epoll_event events[8];
    int found = 0, count = epoll_wait(from, events, 8, 0);
    for (int at = 0; at < count; at++) found |= (int)(events[at].data.u64 >> 32) == fd;
    return found;
}
static void make_disarmed(void) {
    poller = epoll_create1(EPOLL_CLOEXEC);
    disarmed = eventfd(0, EFD_NONBLOCK);
    add(poller, disarmed, EPOLLIN | EPOLLONESHOT);
    put(disarmed);
    must(wait_for(poller, disarmed), "epoll_wait");
}
static void check_disarmed(void) {
    if (wait_for(poller, disarmed)) bad("a descriptor that was disarmed tells");
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = (uint64_t)disarmed << 32};
    epoll_ctl(poller, EPOLL_CTL_MOD, disarmed, &event);
    if (!wait_for(poller, disarmed)) bad("a descriptor that is armed again does not tell");
}
static int edges;
static void make_edge(void) {
    edges = epoll_create1(0);
    edge = eventfd(0, EFD_NONBLOCK);
    add(edges, edge, EPOLLIN | EPOLLET);
    put(edge);
    must(wait_for(edges, edge), "epoll_wait");
}
/* One that has told may tell again (epoll(7): be ready for it); one that has not yet must. */
static void check_edge(void) {
    wait_for(edges, edge);
    if (wait_for(edges, edge)) bad("EPOLLET is forgotten");
    put(edge);
    if (!wait_for(edges, edge)) bad("an edge is not told");
    put(edge);
}
static void check_edge_waiting(void) {
    if (!wait_for(edges, edge)) bad("an edge that was not told yet is lost");
    put(edge);
}
static void make_edge_waiting(void) {
    make_edge();
    put(edge);
}
static void make_nested(void) {
    outer = epoll_create1(0);
    other = epoll_create1(0);
    third = epoll_create1(0);
    exclusive = eventfd(0, EFD_NONBLOCK);
    add(other, exclusive, EPOLLIN | EPOLLEXCLUSIVE);
    add(third, other, EPOLLIN);
    add(outer, third, EPOLLIN);
}
static void check_nested(void) {
    eventfd_t value;
    eventfd_read(exclusive, &value);
    if (wait_for(outer, third)) bad("nested: it tells of nothing");
    put(exclusive);
    if (!wait_for(outer, third)) bad("nested: it does not tell");
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(other, EPOLL_CTL_MOD, exclusive, &event) == 0 || errno != EINVAL) bad("EPOLLEXCLUSIVE is forgotten");
}
/* A descriptor that was closed while its file lives on by another number. */
static int closed_poller, second, first;
static void make_closed(void) {
    closed_poller = epoll_create1(0);
    first = eventfd(0, EFD_NONBLOCK);
    second = fcntl(first, F_DUPFD, 200);
    add(closed_poller, first, EPOLLIN);
    close(first);
}
static void check_closed(void) {
    eventfd_t value;
    eventfd_read(second, &value);
    put(second);
    if (!wait_for(closed_poller, first)) bad("a descriptor that was closed does not tell");
}
/* The same, its number taken by something else. */
static void make_taken(void) {
    make_closed();
    int null = open("/dev/null", O_RDONLY);
    must(null == first || dup2(null, first) == first, "dup2");
}

static int marks;
static void make_fanotify(void) {
    marks = fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_NONBLOCK, O_RDONLY);
    touch("/data/marked");
    must(marks >= 0, "fanotify_init");
    must(fanotify_mark(marks, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, "/data/marked") == 0, "fanotify_mark");
}
static void check_fanotify(void) {
    char buffer[4096];
    while (read(marks, buffer, sizeof buffer) > 0) continue;
    touch("/data/marked");
    if (read(marks, buffer, sizeof buffer) <= 0) bad("fanotify does not tell: %s", strerror(errno));
}

static volatile sig_atomic_t dnotified;
static void on_dnotify(int number) { dnotified = number; }
static int directory;
static void make_dnotify(void) {
    signal(SIGUSR2, on_dnotify);
    must(mkdir("/data/dnotify", 0755) == 0, "mkdir");
    directory = open("/data/dnotify", O_RDONLY | O_DIRECTORY);
    must(fcntl(directory, F_SETSIG, SIGUSR2) == 0 && fcntl(directory, F_NOTIFY, DN_CREATE | DN_MULTISHOT) == 0, "F_NOTIFY");
}
/* Whether it tells is not checked. */
static void check_dnotify(void) {
    unlink("/data/dnotify/file");
    touch("/data/dnotify/file");
}

static int child_fd, dead_fd;
static pid_t child_pid;
static void make_pidfd(void) {
    child_pid = fork();
    if (child_pid == 0) for (;;) pause();
    child_fd = (int)syscall(SYS_pidfd_open, child_pid, 0);
    must(child_fd >= 0, "pidfd_open");
}
static void check_pidfd(void) {
    if (syscall(SYS_pidfd_send_signal, child_fd, 0, NULL, 0) != 0) bad("pidfd: %s", strerror(errno));
}
static void make_pidfd_dead(void) {
    make_pidfd();
    dead_fd = child_fd;
    kill(child_pid, SIGKILL);
    waitpid(child_pid, NULL, 0);
}
static void check_pidfd_dead(void) {
    if (syscall(SYS_pidfd_send_signal, dead_fd, 0, NULL, 0) == 0 || errno != ESRCH) bad("pidfd of a process that has ended: %s", strerror(errno));
}

static const struct state states[] = {
    {"once", make_once, check_once},
    {"excluding", make_excluding, check_excluding},
    {"waiting", make_waiting, check_waiting},
    {"numbered", make_numbered, check_numbered},
    {"nameless", make_nameless, check_nameless},
    {"signals", make_signals, check_signals},
    {"disarmed", make_disarmed, check_disarmed},
    {"edge", make_edge, check_edge},
    {"edge-waiting", make_edge_waiting, check_edge_waiting},
    {"nested", make_nested, check_nested},
    {"closed", make_closed, check_closed},
    {"taken", make_taken, check_closed},
    {"fanotify", make_fanotify, check_fanotify},
    {"directory", make_dnotify, check_dnotify},
    {"pidfd", make_pidfd, check_pidfd},
    {"pidfd-dead", make_pidfd_dead, check_pidfd_dead},
};

int main(int count, char **names) {
    (void)count;
    be(states, sizeof states / sizeof *states, names);
}
