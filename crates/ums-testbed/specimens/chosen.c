/* chosen: what a process has chosen for itself that few ask about. Arguments: the states, by name. */
#include "specimen.h"
#include <asm/ldt.h>
#include <dirent.h>
#include <immintrin.h>
#include <linux/capability.h>
#include <linux/membarrier.h>
#include <linux/mempolicy.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

/* Children whose end is told by another signal than SIGCHLD, or by none. */
static pid_t children[3];
static int told[3] = {0, SIGUSR1, SIGCHLD};
static pid_t spawn(int signal) {
    struct clone_args how = {.exit_signal = (unsigned)signal};
    pid_t pid = (pid_t)syscall(SYS_clone3, &how, sizeof how);
    must(pid >= 0, "clone3");
    if (pid == 0) for (;;) pause();
    return pid;
}
static void exits_begin(void) {
    signal(SIGUSR1, SIG_IGN);
    for (int which = 0; which < 3; which++) children[which] = spawn(told[which]);
}
/* How the ends of those would be told is not checked. */
static void exits(void) {
    for (int which = 0; which < 3; which++) if (kill(children[which], 0)) bad("child %d is gone", which);
}

/* System calls that a handler answers (Syscall User Dispatch). */
static volatile char selector;
static volatile sig_atomic_t dispatched;
static void on_sys(int signal) { (void)signal; selector = 0; dispatched++; }
static void dispatch_begin(void) {
    struct sigaction action = {.sa_handler = on_sys};
    sigaction(SIGSYS, &action, NULL);
    must(prctl(59, 1, 0, 0, &selector) == 0, "PR_SET_SYSCALL_USER_DISPATCH");
}
static void dispatch(void) {
    dispatched = 0;
    selector = 1;
    syscall(SYS_getpid);
    selector = 0;
    if (dispatched != 1) bad("%d system calls were dispatched", dispatched);
}

/* Segments of its own (modify_ldt(2)). */
static void segments_begin(void) {
    struct user_desc one = {.entry_number = 5, .base_addr = 0x12345000, .limit = 77, .seg_32bit = 1, .useable = 1};
    must(syscall(SYS_modify_ldt, 1, &one, sizeof one) == 0, "modify_ldt");
}
static void segments(void) {
    unsigned long table[16] = {0};
    long len = syscall(SYS_modify_ldt, 0, table, sizeof table);
    if (len < 48 || table[5] == 0) bad("the segment is gone: %ld bytes", len);
}

/* Where memory is taken from (NUMA). */
static char *bound;
static void nodes_begin(void) {
    unsigned long nodes = 1;
    must(syscall(SYS_set_mempolicy, MPOL_INTERLEAVE, &nodes, 64) == 0, "set_mempolicy");
    bound = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(syscall(SYS_mbind, bound, 16 * PAGE, MPOL_BIND, &nodes, 64, 0) == 0, "mbind");
    memset(bound, 7, 16 * PAGE);
}
static void nodes(void) {
    for (size_t at = 0; at < 16 * PAGE; at++) if (bound[at] != 7) { bad("bound memory"); break; }
}

/* A signal stack that is put aside while it is used. */
static char stack[65536];
static void disarmed_begin(void) {
    stack_t own = {.ss_sp = stack, .ss_size = sizeof stack, .ss_flags = (int)(1U << 31)};
    must(sigaltstack(&own, NULL) == 0, "sigaltstack");
}
static void disarmed(void) {
    stack_t now;
    sigaltstack(NULL, &now);
    if (now.ss_sp != stack || now.ss_flags != (int)(1U << 31)) bad("the signal stack has flags %x", now.ss_flags);
}

/* How an epoll waits for devices. */
struct params { unsigned usecs; unsigned short budget; unsigned char prefer, pad; };
#define SETS _IOW(0x8A, 0x01, struct params)
#define GETS _IOR(0x8A, 0x02, struct params)
static int polled;
static void busy_begin(void) {
    polled = epoll_create1(0);
    struct params want = {.usecs = 77, .budget = 9, .prefer = 1};
    must(ioctl(polled, SETS, &want) == 0, "EPIOCSPARAMS");
}
static void busy(void) {
    struct params is = {0};
    if (ioctl(polled, GETS, &is) || is.usecs != 77 || is.budget != 9 || is.prefer != 1) bad("the epoll waits %u us, %u packets, %u", is.usecs, is.budget, is.prefer);
}

/* Barriers that need to be registered for. */
static void barriers_begin(void) {
    must(!syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) && !syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0), "membarrier");
    must(!syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0), "membarrier, core");
    must(!syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0), "membarrier, rseq");
}
static void barriers(void) {
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0)) bad("membarrier: %s", strerror(errno));
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0)) bad("membarrier, core: %s", strerror(errno));
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, 0, 0)) bad("membarrier, rseq: %s", strerror(errno));
    long registered = syscall(SYS_membarrier, 1 << 9, 0, 0);
    static long first = -2;
    if (first == -2) first = registered;
    if (registered != first) bad("registered: %lx and not %lx", registered, first);
}

/* Rounding, and what each thread may do with a protection key. */
static int key;
static char *keyed;
static void rights_begin(void) {
    _MM_SET_ROUNDING_MODE(_MM_ROUND_UP);
    key = pkey_alloc(0, 0);
    must(key > 0, "pkey_alloc");
    keyed = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    keyed[0] = 1;
    must(!pkey_mprotect(keyed, PAGE, PROT_READ | PROT_WRITE, key) && !pkey_set(key, PKEY_DISABLE_WRITE), "pkey");
}
static void rights(void) {
    if (_MM_GET_ROUNDING_MODE() != _MM_ROUND_UP) bad("rounding is %x", _MM_GET_ROUNDING_MODE());
    if (pkey_get(key) != PKEY_DISABLE_WRITE) bad("the key allows for %d", pkey_get(key));
    if (keyed[0] != 1) bad("keyed");
}

/* Tiles (AMX), where there are: nothing is in them between two rounds. */
static char tile[1024] __attribute__((aligned(64))), config[64] __attribute__((aligned(64)));
static int tiled;
static void tiles_begin(void) {
    tiled = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
    config[0] = 1, config[16] = 64, config[48] = 16;
    memset(tile, 5, sizeof tile);
}
static void tiles(void) {
    static char out[1024] __attribute__((aligned(64)));
    if (!tiled) return;
    memset(out, 0, sizeof out);
    /* LDTILECFG, TILELOADD and TILESTORED of the first tile, TILERELEASE. */
    __asm__ volatile(".byte 0xc4,0xe2,0x78,0x49,0x00" ::"a"(config) : "memory");
    __asm__ volatile(".byte 0xc4,0xe2,0x7b,0x4b,0x04,0x08" ::"a"(tile), "c"(64L) : "memory");
    __asm__ volatile(".byte 0xc4,0xe2,0x7a,0x4b,0x04,0x08" ::"a"(out), "c"(64L) : "memory");
    __asm__ volatile(".byte 0xc4,0xe2,0x78,0x49,0xc0");
    if (memcmp(out, tile, sizeof tile)) bad("the tile is another");
}

/* A directory that is half read. */
static DIR *half;
static int seen_before;
#define NAMES 5000
static unsigned char seen[NAMES];
static int take(int most) {
    struct dirent *entry;
    int got = 0;
    while (got < most && (entry = readdir(half))) {
        int number;
        if (sscanf(entry->d_name, "file-%d", &number) != 1) continue;
        if (seen[number]++) bad("file-%d is read twice", number);
        got++;
    }
    return got;
}
static void directory_begin(void) {
    char path[64];
    mkdir("/many", 0755);
    for (int number = 0; number < NAMES; number++) {
        snprintf(path, sizeof path, "/many/file-%d", number);
        int fd = open(path, O_CREAT | O_WRONLY, 0644);
        must(fd >= 0, path);
        close(fd);
    }
    half = opendir("/many");
    must(half != NULL, "opendir");
}
static void directory(void) {
    static int round;
    /* A tenth of it in each round. */
    seen_before += take(NAMES / 12);
    if (++round % 13) return;
    for (int number = 0; number < NAMES; number++) if (!seen[number]) { bad("file-%d is not read", number); break; }
    if (seen_before != NAMES) bad("%d of %d are read", seen_before, NAMES);
    rewinddir(half);
    memset(seen, 0, sizeof seen);
    seen_before = 0;
}

/* Limits that leave no room. */
static void tight_begin(void) {
    FILE *file = fopen("/proc/self/statm", "r");
    long pages = 0;
    must(fscanf(file, "%ld", &pages) == 1, "statm");
    fclose(file);
    struct rlimit space = {(unsigned long)pages * PAGE, RLIM_INFINITY};
    must(!setrlimit(RLIMIT_AS, &space), "RLIMIT_AS");
}
static void tight(void) {
    if (mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) bad("memory can be mapped");
}
/* A limit of CPU time, and timers of it; what was used stays behind. */
static void cpu_begin(void) {
    struct rlimit limit = {100, 200};
    struct itimerval far = {{50, 0}, {40, 0}};
    must(!setrlimit(RLIMIT_CPU, &limit) && !setitimer(ITIMER_PROF, &far, NULL) && !setitimer(ITIMER_VIRTUAL, &far, NULL), "limits");
}
static void cpu(void) {
    struct itimerval is;
    struct rlimit limit;
    for (int which = ITIMER_VIRTUAL; which <= ITIMER_PROF; which++)
        if (getitimer(which, &is) || is.it_value.tv_sec > 40 || is.it_value.tv_sec < 30 || is.it_interval.tv_sec != 50) bad("timer %d: %ld s", which, (long)is.it_value.tv_sec);
    if (getrlimit(RLIMIT_CPU, &limit) || limit.rlim_cur != 100 || limit.rlim_max != 200) bad("RLIMIT_CPU");
}
/* Clocks that never go back. */
static void forward(void) {
    static struct timespec last[16];
    static const int all[] = {1, 4, 6, 7};
    for (unsigned which = 0; which < 4; which++) {
        struct timespec now;
        clock_gettime(all[which], &now);
        if (now.tv_sec < last[which].tv_sec || (now.tv_sec == last[which].tv_sec && now.tv_nsec < last[which].tv_nsec)) bad("clock %d went back by %ld s", all[which], (long)(last[which].tv_sec - now.tv_sec));
        last[which] = now;
    }
}
static void nothing(void) {}

/* A thread with fewer capabilities and a name of its own. */
static _Atomic int tid;
static void *weak(void *none) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {0};
    syscall(SYS_capget, &head, data);
    data[0].effective = data[0].permitted = 1;
    data[1].effective = data[1].permitted = 0;
    must(syscall(SYS_capset, &head, data) == 0, "capset");
    prctl(PR_SET_NAME, "weak");
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    tid = (int)syscall(SYS_gettid);
    for (;;) pause();
    return none;
}
static char *line(const char *begin) {
    static char text[256];
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
    FILE *file = fopen(path, "r");
    while (file && fgets(text, sizeof text, file)) if (!strncmp(text, begin, strlen(begin))) { fclose(file); return text; }
    if (file) fclose(file);
    return strcpy(text, "");
}
static void weak_begin(void) {
    pthread_t id;
    must(!pthread_create(&id, NULL, weak, NULL), "thread");
    while (!tid) usleep(1000);
}
static void weak_check(void) {
    if (strcmp(line("CapEff:"), "CapEff:\t0000000000000001\n")) bad("thread: %s", line("CapEff:"));
    if (strcmp(line("Name:"), "Name:\tweak\n")) bad("thread: %s", line("Name:"));
    if (strcmp(line("NoNewPrivs:"), "NoNewPrivs:\t1\n")) bad("thread: %s", line("NoNewPrivs:"));
}
/* All handlers as they were set, with their flags and masks. */
struct action { void *handler; unsigned long flags; void *restorer; unsigned long mask; };
static struct action set[65];
static void handlers_begin(void) {
    for (int number = 1; number <= 64; number++) {
        struct sigaction one = {.sa_handler = number % 3 ? on_sys : SIG_IGN};
        one.sa_flags = (number % 2 ? SA_RESTART : 0) | (number % 4 ? SA_NODEFER : SA_RESETHAND) | (number % 5 ? SA_ONSTACK : 0);
        if (number == SIGCHLD) one.sa_flags |= SA_NOCLDWAIT | SA_NOCLDSTOP;
        sigaddset(&one.sa_mask, 1 + number % 64);
        sigaction(number, &one, NULL);
        syscall(SYS_rt_sigaction, number, NULL, &set[number], 8);
    }
}
static void handlers(void) {
    for (int number = 1; number <= 64; number++) {
        struct action is = {0};
        if (syscall(SYS_rt_sigaction, number, NULL, &is, 8)) continue;
        if (memcmp(&is, &set[number], sizeof is)) bad("signal %d: handler %p flags %lx mask %lx, not %p %lx %lx", number, is.handler, is.flags, is.mask, set[number].handler, set[number].flags, set[number].mask);
    }
}
/* The end of children is told once. */
static volatile sig_atomic_t ends;
static void on_child(int signal) { (void)signal; ends++; }
static void ended_begin(void) {
    struct sigaction action = {.sa_handler = on_child};
    sigaction(SIGCHLD, &action, NULL);
    for (int which = 0; which < 3; which++) if (fork() == 0) _exit(which);
    sleep(1);
    while (ends == 0) usleep(1000);
    usleep(200000);
    ends = 0;
}
static void ended(void) {
    if (ends) bad("the end of children was told %d times more", ends);
    ends = 0;
}
/* The heap goes on where it was. */
static char *top;
/* What malloc takes, which makes the heap as well, is taken before. */
static void heap_begin(void) {
    void *volatile early = malloc(1000);
    free(early);
    memset(top = sbrk(PAGE * 4), 3, PAGE * 4);
    top = sbrk(0);
}
static void heap(void) {
    if (sbrk(0) != top) bad("the heap ends at %p and not %p", sbrk(0), (void *)top);
    char *more = sbrk(PAGE);
    if (more != top) { bad("the heap does not grow"); return; }
    more[PAGE - 1] = 1;
    sbrk(-(long)PAGE);
    char deep[3 << 20];
    deep[0] = 1;
    __asm__ volatile("" ::"r"(deep) : "memory");
    if (deep[0] != 1) bad("stack");
}
/* System V: how much a queue takes, a segment that is locked. */
static int queue, segment;
static void systemv_begin(void) {
    queue = msgget(0x77, IPC_CREAT | 0600), segment = shmget(0x77, 5000, IPC_CREAT | 0600);
    struct msqid_ds about;
    must(queue >= 0 && segment >= 0 && !msgctl(queue, IPC_STAT, &about), "msgget");
    about.msg_qbytes = 512;
    must(!msgctl(queue, IPC_SET, &about), "IPC_SET");
    must(!shmctl(segment, SHM_LOCK, NULL) || errno == EPERM, "SHM_LOCK");
}
static void systemv(void) {
    static int locked = -1;
    struct msqid_ds about;
    struct shmid_ds shared;
    if (msgctl(queue, IPC_STAT, &about) || about.msg_qbytes != 512) bad("queue of %lu bytes", about.msg_qbytes);
    if (shmctl(segment, IPC_STAT, &shared) || shared.shm_segsz != 5000) bad("segment of %lu bytes", shared.shm_segsz);
    int is = shared.shm_perm.mode & 02000;
    if (locked >= 0 && is != locked) bad("the segment is locked: %o", shared.shm_perm.mode);
    locked = is;
}
static const struct state all[] = {
    {"systemv", systemv_begin, systemv},
    {"exits", exits_begin, exits}, {"dispatch", dispatch_begin, dispatch}, {"segments", segments_begin, segments}, {"nodes", nodes_begin, nodes},
    {"disarmed", disarmed_begin, disarmed}, {"busy", busy_begin, busy}, {"barriers", barriers_begin, barriers}, {"rights", rights_begin, rights},
    {"tiles", tiles_begin, tiles}, {"directory", directory_begin, directory}, {"tight", tight_begin, tight}, {"cpu", cpu_begin, cpu},
    {"forward", nothing, forward}, {"weak", weak_begin, weak_check}, {"handlers", handlers_begin, handlers}, {"ended", ended_begin, ended}, {"heap", heap_begin, heap},
};
int main(int count, char **names) { (void)count; be(all, sizeof all / sizeof *all, names); }
