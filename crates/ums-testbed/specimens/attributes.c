/* attributes WHAT: what the kernel keeps of a thread or process beside its memory and descriptors is
 * set to something of its own in the first thread, in a second one and in a child, and stays so. */
#include "specimen.h"
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* Newer than the headers may be. */
#define MEMORY_MERGE_SET 67
#define MEMORY_MERGE_GET 68
#define SLICE_NS 10000000

enum who { MAIN, THREAD, CHILD, NOBODY };

/* struct sched_attr as of Linux 5.3 (linux/sched/types.h). */
struct attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
    uint32_t util_min, util_max;
};

static struct attr scheduling(void) {
    struct attr attr = {.size = sizeof attr};
    must(syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) == 0, "sched_getattr");
    return attr;
}

static int schedule(struct attr attr) {
    return syscall(SYS_sched_setattr, 0, &attr, 0);
}

/* A line of a file of the calling thread's own, as a number. */
static long file(const char *name, int base) {
    char path[64], text[32] = "";
    snprintf(path, sizeof path, "/proc/%ld/%s", syscall(SYS_gettid), name);
    int fd = open(path, O_RDONLY);
    if (fd < 0 || read(fd, text, sizeof text - 1) < 0) return -errno;
    close(fd);
    return strtol(text, NULL, base);
}

static int write_to(const char *name, const char *text) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%ld/%s", syscall(SYS_gettid), name);
    int fd = open(path, O_WRONLY);
    int done = fd >= 0 && write(fd, text, strlen(text)) > 0;
    close(fd);
    return done ? 0 : -1;
}

static int cpu(enum who who) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(who == THREAD, &set);
    return sched_setaffinity(0, sizeof set, &set);
}
static long get_cpu(void) {
    unsigned long set[16] = {0};
    return syscall(SYS_sched_getaffinity, 0, sizeof set, set) < 0 ? -1 : (long)set[0];
}

static int io(enum who who) { return syscall(SYS_ioprio_set, 1, 0, 2 << 13 | (who + 1)); }
static long get_io(void) { return syscall(SYS_ioprio_get, 1, 0); }

static int slack(enum who who) { return prctl(PR_SET_TIMERSLACK, 1000001 + who); }
static long get_slack(void) { return prctl(PR_GET_TIMERSLACK); }

static int policy(enum who who) {
    struct attr attr = scheduling();
    attr.policy = who == CHILD ? SCHED_IDLE : SCHED_BATCH;
    attr.nice = 3 + who;
    return schedule(attr);
}
static long get_policy(void) {
    struct attr attr = scheduling();
    return attr.policy * 100 + attr.nice;
}

static int reset(enum who who) {
    struct attr attr = scheduling();
    attr.flags = who == CHILD ? 0 : SCHED_FLAG_RESET_ON_FORK;
    return schedule(attr);
}
static long get_reset(void) { return scheduling().flags; }

/* Of the whole session; a kernel may have none. */
static int autogroup(enum who who) { return who == MAIN && write_to("autogroup", "5") != 0 && errno != ENOENT; }
static long get_autogroup(void) {
    char line[128] = "";
    long group, nice = -100;
    /* The child may look before it is set. */
    if (getppid() != 0) return 0;
    FILE *file = fopen("/proc/self/autogroup", "r");
    if (file && fgets(line, sizeof line, file)) sscanf(line, "/autogroup-%ld nice %ld", &group, &nice);
    if (file) fclose(file);
    return nice;
}

static int slice(enum who who) {
    struct attr attr = scheduling();
    attr.runtime = attr.policy == SCHED_IDLE ? attr.runtime : SLICE_NS + who * 1000000UL;
    return schedule(attr);
}
static long get_slice(void) { return scheduling().runtime; }

static int persona(enum who who) { return personality(ADDR_NO_RANDOMIZE) < 0 || who == NOBODY; }
static int other_persona(enum who who) { return who == THREAD ? personality(SHORT_INODE) < 0 : persona(who); }
static long get_persona(void) { return personality(0xffffffff); }

static int mce(enum who who) {
    return prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) || who == NOBODY;
}
static long get_mce(void) { return prctl(PR_MCE_KILL_GET, 0, 0, 0, 0); }

static int keepcaps(enum who who) { return prctl(PR_SET_KEEPCAPS, who != CHILD, 0, 0, 0); }
static long get_keepcaps(void) { return prctl(PR_GET_KEEPCAPS); }

static int deathsig(enum who who) { return prctl(PR_SET_PDEATHSIG, SIGUSR1 + who); }
static long get_deathsig(void) {
    int signal = -1;
    return prctl(PR_GET_PDEATHSIG, &signal) < 0 ? -1 : signal;
}

static int core(enum who who) { return who == THREAD ? 0 : write_to("coredump_filter", who ? "0x11" : "0x7f"); }
static long get_core(void) { return file("coredump_filter", 16); }

static int oom(enum who who) { return who == THREAD ? 0 : write_to("oom_score_adj", who ? "700" : "500"); }
static long get_oom(void) { return file("oom_score_adj", 10); }

static int ksm(enum who who) { return who == THREAD ? 0 : prctl(MEMORY_MERGE_SET, 1, 0, 0, 0); }
static long get_ksm(void) { return prctl(MEMORY_MERGE_GET, 0, 0, 0, 0); }

static int thp(enum who who) { return who == MAIN ? prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) : 0; }
static long get_thp(void) { return prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0); }

/* What a thread hands on to those that it makes, and what a process forbids itself. */
static int tsc(enum who who) { return prctl(PR_SET_TSC, PR_TSC_SIGSEGV) || who == NOBODY; }
static long get_tsc(void) {
    int allowed = -1;
    return prctl(PR_GET_TSC, &allowed) < 0 ? -1 : allowed;
}
/* Not every processor, or machine, lets it be forbidden. */
static int cpuid(enum who who) { return syscall(SYS_arch_prctl, 0x1012, 0) && errno != ENODEV && who != NOBODY; }
static long get_cpuid(void) { return syscall(SYS_arch_prctl, 0x1011, 0); }
/* Nor has each a mitigation that can be chosen. */
static int bypass(enum who who) { return prctl(PR_SET_SPECULATION_CTRL, 0, 4, 0, 0) && errno != ENXIO && errno != EPERM && who != NOBODY; }
static long get_bypass(void) { return prctl(PR_GET_SPECULATION_CTRL, 0, 0, 0, 0); }
/* With an exception, which Linux knows from 6.18 on. */
static int thp_but(enum who who) { return who != THREAD && prctl(PR_SET_THP_DISABLE, 1, 2, 0, 0) && errno != EINVAL; }

static int reaper(enum who who) { return who == MAIN ? prctl(PR_SET_CHILD_SUBREAPER, 1) : 0; }
static long get_reaper(void) {
    int is = -1;
    return prctl(PR_GET_CHILD_SUBREAPER, &is) < 0 ? -1 : is;
}

static int dumpable(enum who who) { return who == CHILD ? prctl(PR_SET_DUMPABLE, 0) : 0; }
static long get_dumpable(void) { return prctl(PR_GET_DUMPABLE); }

static int privileges(enum who who) { return who == CHILD ? 0 : prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }
static long get_privileges(void) { return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); }

static int name(enum who who) { return prctl(PR_SET_NAME, who == THREAD ? "od) d S \\ (x" : "first"); }
static long get_name(void) {
    char text[16] = "";
    long sum = 0;
    prctl(PR_GET_NAME, text);
    for (int at = 0; text[at]; at++) sum = sum * 31 + text[at];
    return sum;
}

static int mask(enum who who) {
    if (who != THREAD) umask(who == CHILD ? 077 : 013);
    return 0;
}
static long get_mask(void) {
    char line[256];
    unsigned found = 0xffff;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) sscanf(line, "Umask: %o", &found);
    if (status) fclose(status);
    return found;
}

static int limits(enum who who) {
    struct rlimit core = {4096 + who, 1 << 20}, queue = {1000, 2000}, files = {200, 300};
    if (who == THREAD) return 0;
    return setrlimit(RLIMIT_CORE, &core) || setrlimit(RLIMIT_MSGQUEUE, &queue) || setrlimit(RLIMIT_NOFILE, &files);
}
static long get_limits(void) {
    struct rlimit core, queue, files;
    if (getrlimit(RLIMIT_CORE, &core) || getrlimit(RLIMIT_MSGQUEUE, &queue) || getrlimit(RLIMIT_NOFILE, &files)) return -1;
    return core.rlim_cur + core.rlim_max * 2 + queue.rlim_max * 3 + files.rlim_cur * 5 + files.rlim_max * 7;
}

static const struct attribute {
    const char *group, *name;
    int (*set)(enum who);
    long (*get)(void);
} attributes[] = {
    {"placed", "CPU affinity", cpu, get_cpu},
    {"placed", "I/O priority", io, get_io},
    {"placed", "timer slack", slack, get_slack},
    {"scheduled", "policy and nice value", policy, get_policy},
    {"scheduled", "reset on fork", reset, get_reset},
    {"scheduled", "slice", slice, get_slice},
    {"scheduled", "nice value of the session", autogroup, get_autogroup},
    {"marked", "personality", persona, get_persona},
    {"marked", "machine check policy", mce, get_mce},
    {"marked", "KSM", ksm, get_ksm},
    {"marked", "core filter", core, get_core},
    {"persona", "personality, which is not checked,", other_persona, NULL},
    {"forbidden", "time-stamp counter", tsc, get_tsc},
    {"forbidden", "CPUID", cpuid, get_cpuid},
    {"forbidden", "store bypass", bypass, get_bypass},
    {"forbidden", "huge pages, with an exception,", thp_but, get_thp},
    {"kept", "OOM score", oom, get_oom},
    {"kept", "keepcaps", keepcaps, get_keepcaps},
    {"kept", "parent death signal", deathsig, get_deathsig},
    {"kept", "huge pages", thp, get_thp},
    {"kept", "subreaper", reaper, get_reaper},
    {"kept", "dumpable", dumpable, get_dumpable},
    {"kept", "no new privileges", privileges, get_privileges},
    {"kept", "name", name, get_name},
    {"kept", "umask", mask, get_mask},
    {"kept", "limits", limits, get_limits},
};
#define COUNT (sizeof attributes / sizeof *attributes)

static const char *group;
static const char *const names[] = {"first thread", "second thread", "child"};
static _Thread_local long was[COUNT];
static _Thread_local enum who self;

static void set(enum who who) {
    self = who;
    for (size_t at = 0; at < COUNT; at++)
        if (!strcmp(attributes[at].group, group)) must(attributes[at].set(who) == 0, attributes[at].name);
}

static void look(void) {
    for (size_t at = 0; at < COUNT; at++)
        if (!strcmp(attributes[at].group, group) && attributes[at].get) was[at] = attributes[at].get();
}

static void check(void) {
    for (size_t at = 0; at < COUNT; at++) {
        if (strcmp(attributes[at].group, group) || !attributes[at].get) continue;
        long is = attributes[at].get();
        if (is != was[at]) bad("%s of the %s was %ld, is %ld", attributes[at].name, names[self], was[at], is);
        was[at] = is;
    }
}

static pthread_barrier_t made;

static void *second(void *unused) {
    set(THREAD);
    pthread_barrier_wait(&made);
    look();
    for (;; usleep(PERIOD_US)) check();
    return unused;
}

int main(int count, char **arguments) {
    pthread_t thread;
    begin();
    must(count == 2, "attributes WHAT");
    group = arguments[1];
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0) {
        set(CHILD);
        look();
        for (;; usleep(PERIOD_US)) check();
    }
    set(MAIN);
    must(pthread_barrier_init(&made, NULL, 2) == 0, "barrier");
    must(pthread_create(&thread, NULL, second, NULL) == 0, "pthread_create");
    pthread_barrier_wait(&made);
    look();
    rounds(check);
}
