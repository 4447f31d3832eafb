/* handles: descriptors and sockets in states of their own. Arguments: the states, by name. */
#include "specimen.h"
#include <arpa/inet.h>
#include <linux/memfd.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>

static int fds[16];
static void nothing(void) {}

static void pass(int over, int fd) {
    char byte = 'f', room[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec one = {&byte, 1};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET, part->cmsg_type = SCM_RIGHTS, part->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(part), &fd, sizeof fd);
    must(sendmsg(over, &message, 0) == 1, "sendmsg");
    close(fd);
}
static int taken(int over) {
    char byte, room[CMSG_SPACE(sizeof(int))];
    struct iovec one = {&byte, 1};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    int fd = -1;
    if (recvmsg(over, &message, MSG_DONTWAIT) != 1) { bad("nothing is in flight: %s", strerror(errno)); return -1; }
    if (CMSG_FIRSTHDR(&message)) memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}
/* In flight only: a periodic timer that has expired, a large counter, a socket with options, a file of memory, an epoll. */
static void flight_begin(void) {
    must(!socketpair(AF_UNIX, SOCK_STREAM, 0, fds), "socketpair");
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec every = {{0, 100000000}, {0, 100000000}};
    timerfd_settime(timer, 0, &every, NULL);
    pass(fds[0], timer);
}
/* Nobody takes it: what is in flight for moments only is waited for. */
static void flight(void) {
    char byte;
    if (recv(fds[1], &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 1) bad("nothing is in flight: %s", strerror(errno));
}
static void flight_event_begin(void) {
    must(!socketpair(AF_UNIX, SOCK_STREAM, 0, fds), "socketpair");
    int event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    uint64_t many = 0x123456789abcdULL;
    must(write(event, &many, 8) == 8, "eventfd");
    pass(fds[0], event);
}
static void flight_event(void) {
    int fd = taken(fds[1]);
    uint64_t many = 0, again = 0x123456789abcdULL;
    if (read(fd, &many, 8) != 8 || many != again) bad("the counter is %lx", many);
    must(write(fd, &again, 8) == 8, "eventfd");
    pass(fds[0], fd);
}
static void flight_options_begin(void) {
    must(!socketpair(AF_UNIX, SOCK_STREAM, 0, fds), "socketpair");
    int udp = socket(AF_INET, SOCK_DGRAM, 0), ttl = 33, on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(7401), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    must(!bind(udp, (void *)&at, sizeof at) && !setsockopt(udp, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl) && !setsockopt(udp, IPPROTO_IP, IP_RECVTTL, &on, sizeof on), "udp");
    pass(fds[0], udp);
}
static void flight_options(void) {
    int fd = taken(fds[1]), ttl = 0, on = 0;
    socklen_t length = sizeof ttl;
    getsockopt(fd, IPPROTO_IP, IP_TTL, &ttl, &length);
    getsockopt(fd, IPPROTO_IP, IP_RECVTTL, &on, &length);
    if (ttl != 33 || !on) bad("TTL %d, told %d", ttl, on);
    pass(fds[0], fd);
}
static void flight_group_begin(void) {
    must(!socketpair(AF_UNIX, SOCK_STREAM, 0, fds), "socketpair");
    int epoll = epoll_create1(0);
    struct epoll_event want = {.events = EPOLLIN | EPOLLET, .data.u64 = 77};
    fds[2] = eventfd(1, 0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, fds[2], &want);
    pass(fds[0], epoll);
}
static void flight_group(void) {
    int fd = taken(fds[1]);
    struct epoll_event got = {0};
    static int first = 1;
    int count = epoll_wait(fd, &got, 1, 0);
    if (first && (count != 1 || got.data.u64 != 77)) bad("epoll tells %d", count);
    first = 0;
    uint64_t one = 1;
    must(write(fds[2], &one, 8) == 8, "write");
    count = epoll_wait(fd, &got, 1, 1000);
    if (count != 1) bad("epoll tells nothing");
    must(write(fds[2], &one, 8) == 8, "write");
    first = 1;
    pass(fds[0], fd);
}

/* Options of unix sockets. */
static void local_begin(void) {
    must(!socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), "socketpair");
    struct timeval wait = {7, 0};
    int priority = 3, size = 40000, on = 1;
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "/local"};
    fds[2] = socket(AF_UNIX, SOCK_STREAM, 0);
    must(!bind(fds[2], (void *)&at, sizeof at) && !listen(fds[2], 3) && !chmod("/local", 0620), "listen");
    for (int which = 0; which < 3; which++) {
        setsockopt(fds[which], SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
        setsockopt(fds[which], SOL_SOCKET, SO_PRIORITY, &priority, sizeof priority);
        setsockopt(fds[which], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        setsockopt(fds[which], SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
        setsockopt(fds[which], SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on);
    }
}
static void local(void) {
    for (int which = 0; which < 3; which++) {
        struct timeval wait = {0};
        int priority = 0, size = 0, on = 0, stamp = 0;
        socklen_t length = sizeof wait, four = 4;
        getsockopt(fds[which], SOL_SOCKET, SO_RCVTIMEO, &wait, &length);
        getsockopt(fds[which], SOL_SOCKET, SO_PRIORITY, &priority, &four);
        getsockopt(fds[which], SOL_SOCKET, SO_SNDBUF, &size, &four);
        getsockopt(fds[which], SOL_SOCKET, SO_PASSCRED, &on, &four);
        getsockopt(fds[which], SOL_SOCKET, SO_TIMESTAMP, &stamp, &four);
        if (wait.tv_sec != 7 || priority != 3 || size != 80000 || !on || !stamp) bad("socket %d: %ld s, priority %d, %d bytes, credentials %d, time %d", which, (long)wait.tv_sec, priority, size, on, stamp);
    }
    struct stat file;
    if (stat("/local", &file) || (file.st_mode & 07777) != 0620) bad("mode of the socket %o", file.st_mode);
    /* Three wait, and one more can. */
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "/local"};
    int many[6], waiting = 0;
    for (int which = 0; which < 6; which++) {
        many[which] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        waiting += connect(many[which], (void *)&at, sizeof at) == 0;
    }
    if (waiting != 4) bad("%d connections can wait", waiting);
    for (int which = 0; which < waiting; which++) close(accept(fds[2], NULL, NULL));
    for (int which = 0; which < 6; which++) close(many[which]);
}

/* A socket, a FIFO and a file in /dev. */
static void devices_begin(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "/dev/log"};
    fds[0] = socket(AF_UNIX, SOCK_DGRAM, 0);
    must(!bind(fds[0], (void *)&at, sizeof at) && !chmod("/dev/log", 0666), "/dev/log");
    must(!mkfifo("/dev/initctl", 0600), "mkfifo");
    fds[1] = open("/dev/initctl", O_RDWR);
    int file = open("/dev/made", O_CREAT | O_WRONLY, 0640);
    must(write(file, "made\n", 5) == 5, "/dev/made");
    close(file);
    must(!symlink("/dev/log", "/dev/syslog"), "symlink");
    must(!chmod("/dev/null", 0600), "chmod");
}
static void devices(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "/dev/syslog"};
    int mine = socket(AF_UNIX, SOCK_DGRAM, 0);
    char got[8] = "";
    if (connect(mine, (void *)&at, sizeof at) || send(mine, "said", 4, 0) != 4 || recv(fds[0], got, 8, MSG_DONTWAIT) != 4) bad("/dev/log: %s", strerror(errno));
    close(mine);
    int fifo = open("/dev/initctl", O_WRONLY | O_NONBLOCK);
    if (fifo < 0 || write(fifo, "x", 1) != 1 || read(fds[1], got, 1) != 1) bad("/dev/initctl: %s", strerror(errno));
    close(fifo);
    int file = open("/dev/made", O_RDONLY);
    if (file < 0 || read(file, got, 8) != 5) bad("/dev/made: %s", strerror(errno));
    close(file);
    struct stat about;
    if (stat("/dev/made", &about) || (about.st_mode & 07777) != 0640) bad("/dev/made: mode %o", about.st_mode);
    if (stat("/dev/null", &about) || (about.st_mode & 07777) != 0600) bad("/dev/null: mode %o", about.st_mode);
}

/* FIFO of another size. */
static void sizes_begin(void) {
    must(!mkfifo("/fifo", 0600), "mkfifo");
    fds[0] = open("/fifo", O_RDWR);
    must(fcntl(fds[0], F_SETPIPE_SZ, 16384) == 16384, "F_SETPIPE_SZ");
    must(write(fds[0], "kept", 4) == 4, "write");
}
static void sizes(void) {
    char got[8];
    if (fcntl(fds[0], F_GETPIPE_SZ) != 16384) bad("the FIFO has room for %d", fcntl(fds[0], F_GETPIPE_SZ));
    if (read(fds[0], got, 8) != 4 || write(fds[0], "kept", 4) != 4) bad("what was in it");
}
/* pidfds of other kinds. */
static pid_t child;
static _Atomic int tid;
static void *idle(void *none) { tid = (int)syscall(SYS_gettid); for (;;) pause(); return none; }
static void pids_begin(void) {
    child = fork();
    if (child == 0) for (;;) pause();
    fds[0] = (int)syscall(SYS_pidfd_open, child, O_NONBLOCK);
    must(fds[0] >= 0, "pidfd_open");
}
static void pids(void) {
    siginfo_t how = {0};
    int flags = fcntl(fds[0], F_GETFL);
    if (!(flags & O_NONBLOCK)) bad("flags of the pidfd %x", flags);
    if (syscall(SYS_pidfd_send_signal, fds[0], 0, NULL, 0)) bad("pidfd: %s", strerror(errno));
    int is = waitid(P_PIDFD, (id_t)fds[0], &how, WEXITED);
    if (flags & O_NONBLOCK && (is == 0 || errno != EAGAIN)) bad("waitid: %s", strerror(errno));
}
static void threads_begin(void) {
    pthread_t id;
    pthread_create(&id, NULL, idle, NULL);
    while (!tid) usleep(1000);
    fds[1] = (int)syscall(SYS_pidfd_open, tid, O_EXCL);
    must(fds[1] >= 0, "PIDFD_THREAD");
}
static void threads(void) {
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fds[1]);
    int fd = open(path, O_RDONLY);
    if (read(fd, text, 511) < 0) bad("fdinfo");
    close(fd);
    char *at = strstr(text, "Pid:\t");
    if (!at || atoi(at + 5) != tid) bad("pidfd of %s and not %d", at ? at + 5 : "nobody", tid);
    if (syscall(SYS_pidfd_send_signal, fds[1], 0, NULL, 0)) bad("pidfd: %s", strerror(errno));
    if (!(fcntl(fds[1], F_GETFL) & O_EXCL)) bad("flags %x", fcntl(fds[1], F_GETFL));
}
/* Mapped past the end of a file. */
static char *past;
static void past_begin(void) {
    int fd = open("/short", O_CREAT | O_RDWR | O_TRUNC, 0600);
    must(write(fd, "short", 5) == 5, "write");
    past = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    past[100] = 'p';
    close(fd);
    fds[0] = fd = open("/grown", O_CREAT | O_RDWR | O_TRUNC, 0600);
    must(!ftruncate(fd, 4 * PAGE), "ftruncate");
    fds[2] = 0;
    char *shared = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), *own = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    memset(shared, 4, 4 * PAGE);
    memset(own, 5, 4 * PAGE);
    must(!ftruncate(fd, PAGE), "ftruncate");
}
static void past_check(void) {
    int ends[2];
    if (memcmp(past, "short", 5) || past[100] != 'p') bad("private");
    if (pipe(ends) || write(ends[1], past + PAGE, 1) >= 0 || errno != EFAULT) bad("past the end is something");
    close(ends[0]), close(ends[1]);
}
/* Flags of open files. */
static void flags_begin(void) {
    int all[] = {O_RDWR | O_SYNC, O_RDWR | O_DSYNC, O_RDWR | O_NOATIME, O_RDWR | O_APPEND | O_NONBLOCK, O_WRONLY | O_CLOEXEC, O_RDWR | O_DIRECT, O_RDONLY | O_NOFOLLOW, O_PATH | O_NOFOLLOW};
    close(open("/flags", O_CREAT | O_WRONLY, 0600));
    for (int which = 0; which < 8; which++) fds[which] = open("/flags", all[which]);
    lseek(fds[1], 12345678, SEEK_SET);
    fds[8] = fcntl(fds[0], F_DUPFD, 900);
    fds[9] = open("/", O_RDONLY | O_CLOEXEC);
}
static void flags(void) {
    static int first[10], own[10], done;
    for (int which = 0; which < 10; which++) {
        int is = fcntl(fds[which], F_GETFL), has = fcntl(fds[which], F_GETFD);
        if (done && (is != first[which] || has != own[which])) bad("flags of %d are %x and not %x, %d", which, is, first[which], has);
        first[which] = is, own[which] = has;
    }
    done = 1;
    if (lseek(fds[1], 0, SEEK_CUR) != 12345678) bad("offset");
}
/* A file of memory, opened again for reading; locked; with attributes. */
static void memory_begin(void) {
    fds[0] = (int)syscall(SYS_memfd_create, "shared", MFD_ALLOW_SEALING);
    char path[64];
    must(!ftruncate(fds[0], 8192) && !fchmod(fds[0], 0640), "memfd");
    snprintf(path, sizeof path, "/proc/self/fd/%d", fds[0]);
    fds[1] = open(path, O_RDONLY);
    must(fds[1] >= 0 && !flock(fds[0], LOCK_EX), "flock");
    struct flock part = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5};
    must(!fcntl(fds[0], F_OFD_SETLK, &part), "F_OFD_SETLK");
    lseek(fds[0], 77, SEEK_SET);
}
static void memory(void) {
    if ((fcntl(fds[1], F_GETFL) & O_ACCMODE) != O_RDONLY) bad("flags %x", fcntl(fds[1], F_GETFL));
    if (flock(fds[1], LOCK_EX | LOCK_NB) == 0) bad("the file of memory is not locked"), flock(fds[1], LOCK_UN);
    struct flock part = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5};
    if (fcntl(fds[1], F_OFD_GETLK, &part) || part.l_type != F_WRLCK) bad("the range is not locked");
    struct stat about;
    if (fstat(fds[0], &about) || (about.st_mode & 07777) != 0640 || about.st_size != 8192) bad("mode %o size %ld", about.st_mode, (long)about.st_size);
    if (lseek(fds[0], 0, SEEK_CUR) != 77 || lseek(fds[1], 0, SEEK_CUR) != 0) bad("offsets");
}
/* Locks of a directory, of a deleted file, of one in /dev/shm. */
static void locks_begin(void) {
    fds[0] = open("/tmp", O_RDONLY | O_DIRECTORY), fds[1] = open("/tmp", O_RDONLY | O_DIRECTORY);
    fds[2] = open("/lost", O_CREAT | O_RDWR, 0600), fds[3] = open("/lost", O_RDWR);
    fds[4] = open("/dev/shm/held", O_CREAT | O_RDWR, 0600), fds[5] = open("/dev/shm/held", O_RDWR);
    for (int which = 0; which < 6; which += 2) must(!flock(fds[which], LOCK_EX), "flock");
    unlink("/lost");
}
static void locks(void) {
    for (int which = 1; which < 6; which += 2) if (flock(fds[which], LOCK_EX | LOCK_NB) == 0) bad("lock %d is free", which), flock(fds[which], LOCK_UN);
}
/* Signals of sockets. */
static volatile sig_atomic_t told;
static void on_io(int signal) { (void)signal; told++; }
static void owned_begin(void) {
    signal(SIGIO, on_io);
    must(!socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), "socketpair");
    fds[2] = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(7402), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    must(!bind(fds[2], (void *)&at, sizeof at), "bind");
    for (int which = 1; which < 3; which++) fcntl(fds[which], F_SETOWN, getpid()), fcntl(fds[which], F_SETFL, O_ASYNC | O_NONBLOCK);
}
static void owned(void) {
    char got[8];
    told = 0;
    send(fds[0], "x", 1, 0);
    if (!told) bad("a unix socket does not signal");
    if (read(fds[1], got, 8) != 1) bad("read");
    told = 0;
    int mine = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(7402), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    sendto(mine, "x", 1, 0, (void *)&at, sizeof at);
    usleep(20000);
    if (!told) bad("UDP does not signal");
    while (read(fds[2], got, 8) > 0) {}
    close(mine);
}
/* Calls that have done a part of their work when the service is frozen: they say how much. */
static int stream[2];
static _Atomic unsigned long received;
static void *writer(void *none) {
    static char many[1 << 20];
    for (unsigned long at = 0; at < sizeof many; at++) many[at] = (char)(at % 251);
    for (;;)
        for (size_t done = 0; done < sizeof many;) {
            ssize_t more = write(stream[1], many + done, sizeof many - done);
            if (more <= 0) bad("write: %zd, %s", more, strerror(errno));
            else done += (size_t)more;
        }
    return none;
}
static void *reader(void *none) {
    unsigned char got[3000];
    for (unsigned long at = 0;;) {
        /* All of it, unless the service is frozen meanwhile. */
        ssize_t done = recv(stream[0], got, sizeof got, MSG_WAITALL);
        if (done <= 0) bad("recv: %zd, %s", done, strerror(errno));
        for (ssize_t byte = 0; byte < done; byte++, at++) if (got[byte] != (unsigned char)((at % (1 << 20)) % 251)) { bad("stream at %lu", at); break; }
        received += (unsigned long)done;
        usleep(1000);
    }
    return none;
}
static void partial_begin(void) {
    pthread_t id;
    must(!socketpair(AF_UNIX, SOCK_STREAM, 0, stream), "socketpair");
    pthread_create(&id, NULL, writer, NULL), pthread_create(&id, NULL, reader, NULL);
}
static void partial(void) {
    static unsigned long before;
    usleep(100000);
    if (received == before) bad("the stream stands still");
    before = received;
}
/* Timers that are cancelled, of other clocks, without a signal. */
static timer_t quiet, other;
static void timers_begin(void) {
    fds[0] = timerfd_create(CLOCK_REALTIME, 0);
    struct itimerspec far = {{0, 0}, {time(NULL) + 5000, 0}};
    must(!timerfd_settime(fds[0], TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &far, NULL), "timerfd");
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    struct itimerspec every = {{1000, 0}, {2000, 0}};
    must(!timer_create(CLOCK_BOOTTIME, &none, &quiet) && !timer_settime(quiet, 0, &every, NULL), "SIGEV_NONE");
    must(!timer_create(11, &none, &other) && !timer_settime(other, 0, &every, NULL), "CLOCK_TAI");
}
static void timers(void) {
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fds[0]);
    int fd = open(path, O_RDONLY);
    if (read(fd, text, 511) < 0) bad("fdinfo");
    close(fd);
    if (!strstr(text, "settime flags: 03")) bad("timerfd: %s", strstr(text, "settime") ? strstr(text, "settime") : text);
    struct itimerspec is = {0};
    if (timer_gettime(quiet, &is) || is.it_interval.tv_sec != 1000 || is.it_value.tv_sec < 1900) bad("quiet timer %ld", (long)is.it_value.tv_sec);
    if (timer_gettime(other, &is) || is.it_interval.tv_sec != 1000 || is.it_value.tv_sec < 1900) bad("TAI timer %ld", (long)is.it_value.tv_sec);
}
/* Files that are mapped, stored to, and let go again: their times tell of the first store alone. */
static void cycles(void) {
    static unsigned char last[4][16];
    char path[64], *at[4];
    for (int which = 0; which < 4; which++) {
        snprintf(path, sizeof path, which % 2 ? "/dev/shm/cycle-%d" : "/cycle-%d", which);
        int fd = open(path, O_CREAT | O_RDWR, 0600);
        must(fd >= 0 && !ftruncate(fd, 16 * PAGE), path);
        at[which] = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        must(at[which] != MAP_FAILED, "mmap");
        close(fd);
        for (size_t page = 0; page < 16; page++) if ((unsigned char)at[which][page * PAGE] != last[which][page]) { bad("%s: page %zu holds %d and not %d", path, page, at[which][page * PAGE], last[which][page]); break; }
    }
    for (int times = 100 + rand() % 900; times > 0; times--) {
        for (int which = 0; which < 4; which++) for (size_t page = 0; page < 16; page++) at[which][page * PAGE] = (char)++last[which][page];
        usleep(1000);
    }
    for (int which = 0; which < 4; which++) munmap(at[which], 16 * PAGE);
    usleep((unsigned)rand() % 1000000);
}
/* A socket that is bound by another name than it has. */
static void called_begin(const char *name, int (*give)(const char *, const char *)) {
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "/bound"};
    fds[0] = socket(AF_UNIX, SOCK_STREAM, 0);
    must(!bind(fds[0], (void *)&at, sizeof at) && !listen(fds[0], 8) && !give("/bound", name), name);
}
static void renamed_begin(void) { called_begin("/renamed", rename); }
static void linked_begin(void) { called_begin("/linked", link); }
static void called(const char *name) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int mine = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    strcpy(at.sun_path, name);
    if (connect(mine, (void *)&at, sizeof at)) bad("%s: %s", name, strerror(errno));
    else close(accept(fds[0], NULL, NULL));
    close(mine);
}
static void renamed(void) { called("/renamed"); }
static void linked(void) { called("/linked"); }
static const struct state all[] = {
    {"renamed", renamed_begin, renamed}, {"linked", linked_begin, linked},
    {"flight", flight_begin, flight}, {"flight-event", flight_event_begin, flight_event}, {"flight-options", flight_options_begin, flight_options}, {"flight-group", flight_group_begin, flight_group},
    {"local", local_begin, local}, {"devices", devices_begin, devices}, {"sizes", sizes_begin, sizes}, {"pids", pids_begin, pids}, {"threads", threads_begin, threads},
    {"past", past_begin, past_check}, {"flags", flags_begin, flags}, {"memory", memory_begin, memory}, {"locks", locks_begin, locks}, {"owned", owned_begin, owned},
    {"partial", partial_begin, partial}, {"timers", timers_begin, timers}, {"cycles", nothing, cycles},
};
int main(int count, char **names) { (void)count; be(all, sizeof all / sizeof *all, names); }
