/* further: states of processes and sockets, each by its name, in the table at the end. */
#include "specimen.h"
#include <arpa/inet.h>
#include <linux/futex.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#define WORKERS 4

static int fds[WORKERS + 2], other;
static _Atomic int *shared;
static pid_t children[WORKERS];

static void share(void) {
    shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(shared != MAP_FAILED, "mmap");
}
/* A child that ends with its parent. */
static pid_t child(void (*work)(int), int which) {
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    work(which);
    _exit(0);
}
static void thread(void *(*work)(void *), void *what) {
    pthread_t id;
    must(pthread_create(&id, NULL, work, what) == 0, "pthread_create");
}
static void wait_until(_Atomic int *word, int value, const char *what) {
    for (int times = 0; *word != value && times < 500; times++) usleep(10000);
    if (*word != value) bad("%s: %d and not %d", what, *word, value);
}

/* Workers that share a port (SO_REUSEPORT), TCP and UDP. */
static void at_port(int fd, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    must(!setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) && !bind(fd, (void *)&to, sizeof to), "bind");
}
static void serve(int which) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), udp = socket(AF_INET, SOCK_DGRAM, 0);
    at_port(listener, 7300), at_port(udp, 7301);
    must(listen(listener, 16) == 0, "listen");
    struct pollfd both[2] = {{listener, POLLIN, 0}, {udp, POLLIN, 0}};
    shared[which] = 1;
    for (;;) {
        char name = 'a' + which, got[8];
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        if (poll(both, 2, -1) < 0) bad("poll: %s", strerror(errno));
        if (both[0].revents) {
            int accepted = accept(listener, NULL, NULL);
            if (accepted < 0 || write(accepted, &name, 1) != 1) bad("accept: %s", strerror(errno));
            close(accepted);
        }
        if (both[1].revents && recvfrom(udp, got, sizeof got, 0, (void *)&from, &length) > 0) sendto(udp, &name, 1, 0, (void *)&from, length);
    }
}
static void reuseport_begin(void) {
    share();
    for (int which = 0; which < WORKERS; which++) {
        children[which] = child(serve, which);
        wait_until(&shared[which], 1, "a worker");
    }
}
static void reuseport(void) {
    int met = 0, met_udp = 0;
    for (int times = 0; times < 40; times++) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(7300), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        struct timeval limit = {2, 0};
        char name = 0;
        int mine = socket(AF_INET, SOCK_STREAM, 0), udp = socket(AF_INET, SOCK_DGRAM, 0);
        setsockopt(udp, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        if (connect(mine, (void *)&to, sizeof to) || read(mine, &name, 1) != 1) bad("TCP: %s", strerror(errno));
        else met |= 1 << (name - 'a');
        to.sin_port = htons(7301);
        if (sendto(udp, "?", 1, 0, (void *)&to, sizeof to) != 1 || read(udp, &name, 1) != 1) bad("UDP: %s", strerror(errno));
        else met_udp |= 1 << (name - 'a');
        close(mine), close(udp);
    }
    if (met != (1 << WORKERS) - 1 || met_udp != met) bad("workers %#x answer TCP, %#x UDP", met, met_udp);
}

/* IPv6 alone, IPv4 beside it on the same port, and both by one socket on another. */
static int six(int port, int only) {
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    must(!setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only), "IPV6_V6ONLY");
    must(!bind(fd, (void *)&at, sizeof at) && !listen(fd, 4), "listen");
    return fd;
}
static void v6only_begin(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(7302)};
    fds[0] = six(7302, 1);
    fds[1] = socket(AF_INET, SOCK_STREAM, 0);
    must(!bind(fds[1], (void *)&at, sizeof at) && !listen(fds[1], 4), "listen");
    fds[2] = six(7303, 0);
}
static void reach(int port, int listener) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int mine = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(mine, (void *)&to, sizeof to)) bad("connect to %d: %s", port, strerror(errno));
    struct pollfd events = {listener, POLLIN, 0};
    if (poll(&events, 1, 1000) != 1) bad("another socket than %d was reached at %d", listener, port);
    else close(accept(listener, NULL, NULL));
    close(mine);
}
static void v6only(void) {
    int only[3];
    for (int which = 0; which < 3; which += 2) {
        socklen_t length = sizeof only[which];
        getsockopt(fds[which], IPPROTO_IPV6, IPV6_V6ONLY, &only[which], &length);
    }
    if (only[0] != 1 || only[2] != 0) bad("IPV6_V6ONLY is %d and %d", only[0], only[2]);
    reach(7302, fds[1]);
    reach(7303, fds[2]);
}

/* Bound to an address that is not there (IP_FREEBIND), to a device, and to a port alone without listening. */
static void bound_begin(void) {
    int on = 1;
    struct sockaddr_in away = {.sin_family = AF_INET, .sin_port = htons(7304), .sin_addr.s_addr = inet_addr("198.51.100.7")};
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(7305)};
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    must(!setsockopt(fds[0], IPPROTO_IP, IP_FREEBIND, &on, sizeof on), "IP_FREEBIND");
    must(!bind(fds[0], (void *)&away, sizeof away) && !listen(fds[0], 3), "bind");
    fds[1] = socket(AF_INET, SOCK_DGRAM, 0);
    must(!setsockopt(fds[1], IPPROTO_IP, IP_FREEBIND, &on, sizeof on), "IP_FREEBIND");
    must(!bind(fds[1], (void *)&away, sizeof away), "bind");
    fds[2] = socket(AF_INET, SOCK_DGRAM, 0);
    must(!setsockopt(fds[2], SOL_SOCKET, SO_BINDTODEVICE, "lo", 3), "SO_BINDTODEVICE");
    must(!bind(fds[2], (void *)&any, sizeof any), "bind");
    fds[3] = socket(AF_INET, SOCK_STREAM, 0);
    must(!bind(fds[3], (void *)&any, sizeof any), "bind");
}
static void bound(void) {
    const unsigned short ports[] = {7304, 7304, 7305, 7305};
    for (int which = 0; which < 4; which++) {
        struct sockaddr_in is = {0};
        socklen_t length = sizeof is;
        getsockname(fds[which], (void *)&is, &length);
        in_addr_t wanted = which < 2 ? inet_addr("198.51.100.7") : 0;
        if (is.sin_addr.s_addr != wanted || ntohs(is.sin_port) != ports[which]) bad("%d is bound to %s:%d", which, inet_ntoa(is.sin_addr), ntohs(is.sin_port));
    }
    char device[IF_NAMESIZE] = "";
    socklen_t length = sizeof device;
    if (getsockopt(fds[2], SOL_SOCKET, SO_BINDTODEVICE, device, &length) || strcmp(device, "lo")) bad("bound to `%s`", device);
    /* The one that only has its port can still do with it what it likes. */
    int copy = dup(fds[3]);
    if (fcntl(copy, F_GETFD) < 0) bad("dup: %s", strerror(errno));
    close(copy);
}

/* A mutex whose owner ends: others are told (robust futexes). */
static struct robust { pthread_mutex_t mutex; _Atomic int held, end; } *robust;
static void own(int which) {
    (void)which;
    pthread_mutex_lock(&robust->mutex);
    robust->held = 1;
    while (!robust->end) usleep(1000);
    _exit(0);
}
static void take_owner(void) {
    robust->held = robust->end = 0;
    children[0] = child(own, 0);
    wait_until(&robust->held, 1, "an owner");
}
static void robust_begin(void) {
    pthread_mutexattr_t kind;
    robust = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    must(pthread_mutex_init(&robust->mutex, &kind) == 0, "pthread_mutex_init");
    take_owner();
}
static void robust_check(void) {
    if (pthread_mutex_trylock(&robust->mutex) != EBUSY) bad("nobody owns it");
    robust->end = 1;
    waitpid(children[0], NULL, 0);
    int told = pthread_mutex_lock(&robust->mutex);
    if (told != EOWNERDEAD) bad("told %s of its owner's end", strerror(told));
    pthread_mutex_consistent(&robust->mutex);
    pthread_mutex_unlock(&robust->mutex);
    take_owner();
}

/* A mutex that inherits priority, owned here and waited for there. */
static pthread_mutex_t heir;
static _Atomic int got, waiter;
static void *wait_for_it(void *nothing) {
    for (;; got++) {
        waiter = syscall(SYS_gettid);
        int told = pthread_mutex_lock(&heir);
        if (told) bad("lock: %s", strerror(told));
        pthread_mutex_unlock(&heir);
        int seen = got + 1;
        (void)seen;
        while (waiter) usleep(1000);
    }
    return nothing;
}
static void owned(void) {
    pthread_mutex_lock(&heir);
    waiter = 0;
    for (int times = 0; !waiter && times < 500; times++) usleep(1000);
    usleep(20000);
}
static void priority_begin(void) {
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setprotocol(&kind, PTHREAD_PRIO_INHERIT);
    must(pthread_mutex_init(&heir, &kind) == 0, "pthread_mutex_init");
    pthread_mutex_lock(&heir);
    thread(wait_for_it, NULL);
    while (!waiter) usleep(1000);
    usleep(20000);
}
static void priority(void) {
    int before = got;
    pthread_mutex_unlock(&heir);
    waiter = 0;
    for (int times = 0; got == before && times < 500; times++) usleep(1000), waiter = 0;
    if (got == before) bad("who waits for the mutex does not get it");
    owned();
}

/* Threads that end, and others that wait for that. */
static _Atomic int ends, joined;
static pthread_t ending;
static void *end_when_told(void *nothing) { while (!ends) usleep(1000); return nothing; }
static void *join_it(void *nothing) {
    int told = pthread_join(ending, NULL);
    if (told) bad("join: %s", strerror(told));
    joined = 1;
    return nothing;
}
static void joins_begin(void) {
    ends = joined = 0;
    must(pthread_create(&ending, NULL, end_when_told, NULL) == 0, "pthread_create");
    pthread_t id;
    must(pthread_create(&id, NULL, join_it, NULL) == 0, "pthread_create");
    pthread_detach(id);
    usleep(20000);
}
static void joins(void) {
    if (joined) bad("joined before its end");
    ends = 1;
    wait_until(&joined, 1, "who waits for a thread's end");
    joins_begin();
}

/* Restartable sequences: the kernel says which processor a thread is on. */
static void rseq_begin(void) {}
static void rseq(void) {
    if (__rseq_size == 0) return;
    struct rseq *mine = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    cpu_set_t one, all;
    sched_getaffinity(0, sizeof all, &all);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &all)) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one);
        if ((int)*(volatile uint32_t *)&mine->cpu_id != cpu) bad("on processor %d, told %d", cpu, (int)mine->cpu_id);
    }
    sched_setaffinity(0, sizeof all, &all);
}

/* A thread that is in a critical section nearly all the time: whoever interrupts it there sends it to the abort
   handler, and it never goes on to the section's end. */
enum { WHOLE, ABORTED, BROKEN };
static void be_critical(int nothing) {
    (void)nothing;
    struct rseq *mine = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    uint64_t left;
    for (;;) {
        asm goto(
            ".pushsection __rseq_cs, \"aw\"\n .balign 32\n 3: .long 0, 0\n .quad 1f, 2f - 1f, 4f\n .popsection\n"
            "leaq 3b(%%rip), %%rax\n movq %%rax, %[section]\n"
            "1: movq $400000, %%rcx\n 5: decq %%rcx\n jnz 5b\n movq %[section], %%rax\n movq %%rax, %[left]\n 2:\n"
            ".pushsection __rseq_failure, \"ax\"\n .byte 0x0f, 0xb9, 0x3d\n .long 0x53053053\n"
            "4: jmp %l[aborted]\n .popsection\n"
            : : [section] "m"(mine->rseq_cs), [left] "m"(left) : "memory", "cc", "rax", "rcx" : aborted);
        shared[left ? WHOLE : BROKEN]++;
        continue;
    aborted:
        shared[ABORTED]++;
    }
}
static void critical_begin(void) {
    share();
    if (__rseq_size) child(be_critical, 0);
}
static void critical(void) {
    if (!__rseq_size) return;
    if (shared[BROKEN]) bad("%d critical sections were interrupted and went on", shared[BROKEN]);
    shared[WHOLE] = shared[ABORTED] = 0;
    for (int times = 0; !(shared[WHOLE] && shared[ABORTED]) && times < 2000; times++) usleep(1000);
    if (!shared[WHOLE] || !shared[ABORTED]) bad("%d sections, %d aborted", shared[WHOLE], shared[ABORTED]);
}

/* A thread in a handler, on its own stack for signals. */
static _Atomic int in_handler, leave;
static char *stack_for_signals;
static void handle(int signal) {
    char here;
    (void)signal;
    stack_t is;
    in_handler = 1;
    while (!leave) {
        if (&here < stack_for_signals || &here > stack_for_signals + 65536) bad("the handler is elsewhere");
        usleep(1000);
    }
    if (sigaltstack(NULL, &is) || !(is.ss_flags & SS_ONSTACK)) bad("not on its stack");
    in_handler = 0;
}
static void *be_signalled(void *nothing) {
    stack_t stack = {.ss_sp = stack_for_signals, .ss_size = 65536};
    must(sigaltstack(&stack, NULL) == 0, "sigaltstack");
    for (;;) {
        leave = 0;
        syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR2);
    }
    return nothing;
}
static void handler_begin(void) {
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR2, &action, NULL);
    stack_for_signals = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    thread(be_signalled, NULL);
    wait_until(&in_handler, 1, "the handler");
}
static void handler(void) {
    wait_until(&in_handler, 1, "the handler");
    leave = 1;
    for (int times = 0; leave && times < 500; times++) usleep(1000);
    if (leave) bad("the handler does not return");
}

/* A file that two processes map shared: with a name, and without one. */
static _Atomic int *maps[2];
static void count_along(int which) {
    (void)which;
    for (;;) {
        for (int map = 0; map < 2; map++) if (maps[map][0] != maps[map][512]) maps[map][512] = maps[map][0];
        usleep(1000);
    }
}
static void mapped_begin(void) {
    for (int map = 0; map < 2; map++) {
        int fd = open("/mapped", O_CREAT | O_RDWR | O_TRUNC, 0600);
        must(fd >= 0 && ftruncate(fd, 4 * PAGE) == 0, "open");
        maps[map] = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        must(maps[map] != MAP_FAILED, "mmap");
        fds[map] = fd;
        if (map == 0) unlink("/mapped");
    }
    children[0] = child(count_along, 0);
}
static void mapped(void) {
    for (int map = 0; map < 2; map++) {
        int next = maps[map][0] + 1, read = 0;
        maps[map][0] = next;
        wait_until(&maps[map][512], next, map ? "a mapped file" : "a mapped file without a name");
        if (pread(fds[map], &read, sizeof read, 0) != sizeof read || read != next) bad("the file %d has %d and not %d", map, read, next);
    }
}

/* Who waits for the other end of a FIFO to be opened. */
static _Atomic int opened, turn;
static void *open_it(void *nothing) {
    for (;;) {
        int fd = open("/fifo", O_WRONLY), before = turn;
        if (fd < 0) bad("open: %s", strerror(errno));
        else if (write(fd, "through", 7) != 7) bad("write: %s", strerror(errno));
        opened++;
        close(fd);
        while (turn == before) usleep(1000);
    }
    return nothing;
}
static void fifo_begin(void) {
    must(mkfifo("/fifo", 0600) == 0, "mkfifo");
    signal(SIGPIPE, SIG_IGN);
    thread(open_it, NULL);
    usleep(20000);
}
static void fifo(void) {
    int before = opened;
    char text[8] = "";
    int fd = open("/fifo", O_RDONLY);
    if (read(fd, text, 7) != 7 || strcmp(text, "through")) bad("`%s` came: %s", text, strerror(errno));
    wait_until(&opened, before + 1, "who opened a FIFO");
    close(fd);
    turn++;
    usleep(20000);
}

/* Who waits for a semaphore or a lock of a file: calls that are not begun anew by the kernel. */
static int set;
static _Atomic int passed;
static void *down(void *nothing) {
    struct sembuf one = {0, -1, 0};
    for (;; passed++) if (semop(set, &one, 1)) bad("semop: %s", strerror(errno)), usleep(100000);
    return nothing;
}
static void semaphore_begin(void) {
    set = semget(IPC_PRIVATE, 1, 0600);
    must(set >= 0, "semget");
    thread(down, NULL);
    usleep(20000);
}
static void semaphore(void) {
    struct sembuf one = {0, 1, 0};
    int before = passed;
    if (semop(set, &one, 1)) bad("semop: %s", strerror(errno));
    wait_until(&passed, before + 1, "who waits for a semaphore");
}
static void lock_it(int which) {
    (void)which;
    for (;;) {
        struct flock all = {.l_type = F_WRLCK};
        int fd = open("/locked", O_RDWR);
        if (fcntl(fd, F_SETLKW, &all)) bad("F_SETLKW: %s", strerror(errno));
        shared[0]++;
        close(fd);
        while (shared[1] < shared[0]) usleep(1000);
    }
}
static void lock_here(void) {
    struct flock all = {.l_type = F_WRLCK};
    if (fcntl(other, F_SETLKW, &all)) bad("F_SETLKW: %s", strerror(errno));
}
static void lock_begin(void) {
    share();
    other = open("/locked", O_CREAT | O_RDWR, 0600);
    lock_here();
    children[0] = child(lock_it, 0);
    usleep(20000);
}
static void lock(void) {
    struct flock all = {.l_type = F_UNLCK};
    int before = shared[0];
    fcntl(other, F_SETLK, &all);
    wait_until(&shared[0], before + 1, "who waits for a lock");
    lock_here();
    shared[1]++;
}

/* The command line and name of a process, written over by itself. */
static char **words_of_mine;
static void title_begin(void) { memset(words_of_mine[0], 'T', strlen(words_of_mine[0])); prctl(PR_SET_NAME, "renamed"); }
static void title(void) {
    char line[64] = "", name[17] = "";
    int fd = open("/proc/self/cmdline", O_RDONLY);
    if (read(fd, line, sizeof line - 1) <= 0 || strncmp(line, "TTTT", 4)) bad("the command line is `%s`", line);
    close(fd);
    prctl(PR_GET_NAME, name);
    if (strcmp(name, "renamed")) bad("the name is `%s`", name);
}

/* A server of packets (SOCK_SEQPACKET) at which somebody waits, and a TCP server that takes data with the
 * first packet. */
static void packets_begin(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "/packets"};
    fds[0] = socket(AF_UNIX, SOCK_SEQPACKET, 0), fds[1] = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    must(!bind(fds[0], (void *)&at, sizeof at) && !listen(fds[0], 3) && !connect(fds[1], (void *)&at, sizeof at), "connect");
}
static void packets(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "/packets"};
    char text[16] = "";
    int accepted = accept4(fds[0], NULL, NULL, SOCK_NONBLOCK);
    if (accepted < 0) bad("accept: %s", strerror(errno));
    if (send(fds[1], "one", 3, 0) != 3 || send(fds[1], "two", 3, 0) != 3) bad("send: %s", strerror(errno));
    if (recv(accepted, text, sizeof text, 0) != 3 || strcmp(text, "one")) bad("`%s` came first", text);
    close(accepted), close(fds[1]);
    fds[1] = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (connect(fds[1], (void *)&at, sizeof at)) bad("connect: %s", strerror(errno));
}

/* Capabilities: fewer than root has, ambient ones, and what is kept for later (securebits). */
#include <linux/capability.h>
#include <linux/securebits.h>
static struct __user_cap_data_struct had[2];
static int bits;
static void capabilities_now(struct __user_cap_data_struct *now) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    must(syscall(SYS_capget, &header, now) == 0, "capget");
}
static void capabilities_begin(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    capabilities_now(had);
    had[0].effective &= ~(1U << CAP_CHOWN);
    had[0].permitted &= ~(1U << CAP_FOWNER);
    had[0].effective &= had[0].permitted;
    had[0].inheritable |= 1U << CAP_KILL;
    must(syscall(SYS_capset, &header, had) == 0, "capset");
    must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0) == 0, "ambient");
    must(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP) == 0, "securebits");
    must(prctl(PR_CAPBSET_DROP, CAP_SETFCAP) == 0, "bounding set");
    bits = prctl(PR_GET_SECUREBITS);
    capabilities_now(had);
}
static void capabilities(void) {
    struct __user_cap_data_struct now[2];
    capabilities_now(now);
    if (memcmp(now, had, sizeof now)) bad("capabilities %x %x %x", now[0].effective, now[0].permitted, now[0].inheritable);
    if (prctl(PR_GET_SECUREBITS) != bits) bad("securebits %#x", prctl(PR_GET_SECUREBITS));
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_KILL, 0, 0) != 1) bad("not ambient");
    if (prctl(PR_CAPBSET_READ, CAP_SETFCAP) != 0) bad("in the bounding set");
}

/* Messages of System V, unread, of several kinds; a queue that is full, with a writer that waits. */
static int messages;
static struct message { long kind; char text[4096]; } message;
static _Atomic int sent;
static void *send_on(void *nothing) {
    struct message mine = {.kind = 9};
    for (;; sent++) if (msgsnd(messages, &mine, sizeof mine.text, 0)) bad("msgsnd: %s", strerror(errno)), usleep(100000);
    return nothing;
}
static void messages_begin(void) {
    messages = msgget(IPC_PRIVATE, 0600);
    must(messages >= 0, "msgget");
    for (long kind = 1; kind <= 3; kind++) {
        message.kind = kind;
        sprintf(message.text, "of kind %ld", kind);
        must(msgsnd(messages, &message, 32, 0) == 0, "msgsnd");
    }
    thread(send_on, NULL);
    usleep(50000);
}
static void messages_check(void) {
    char text[32];
    int before = sent;
    for (long kind = 3; kind >= 1; kind--) {
        sprintf(text, "of kind %ld", kind);
        if (msgrcv(messages, &message, 32, kind, IPC_NOWAIT) != 32 || strcmp(message.text, text)) bad("`%s` came: %s", message.text, strerror(errno));
        if (msgrcv(messages, &message, sizeof message.text, 9, 0) != sizeof message.text) bad("msgrcv: %s", strerror(errno));
    }
    for (int times = 0; sent < before + 3 && times < 500; times++) usleep(10000);
    if (sent < before + 3) bad("who sends to a full queue: %d and not %d", sent, before + 3);
    for (long kind = 1; kind <= 3; kind++) {
        message.kind = kind;
        sprintf(message.text, "of kind %ld", kind);
        while (msgsnd(messages, &message, 32, IPC_NOWAIT)) {
            struct message taken;
            msgrcv(messages, &taken, sizeof taken.text, 9, IPC_NOWAIT);
        }
    }
}

static const struct state states[] = {
    {"reuseport", reuseport_begin, reuseport}, {"v6only", v6only_begin, v6only}, {"bound", bound_begin, bound},
    {"robust", robust_begin, robust_check}, {"priority", priority_begin, priority}, {"joins", joins_begin, joins},
    {"rseq", rseq_begin, rseq}, {"critical", critical_begin, critical},
    {"handler", handler_begin, handler}, {"mapped", mapped_begin, mapped},
    {"fifo", fifo_begin, fifo}, {"semaphore", semaphore_begin, semaphore}, {"lock", lock_begin, lock},
    {"title", title_begin, title}, {"packets", packets_begin, packets}, {"capabilities", capabilities_begin, capabilities},
    {"messages", messages_begin, messages_check},
};

int main(int count_of_words, char **words) {
    (void)count_of_words;
    words_of_mine = words;
    be(states, sizeof states / sizeof *states, words);
}
