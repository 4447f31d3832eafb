/* confined: what a program forbids itself and its children. Arguments: the states, by name. */
#include "specimen.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static void check_nothing(void) {}

/* Another root directory, entered by the whole program, by a child, and with the working directory outside. */
static void make_root(void) {
    must(mkdir("/data/root", 0755) == 0, "mkdir");
    close(open("/data/root/file", O_CREAT | O_WRONLY, 0644));
}
static void make_chroot(void) {
    make_root();
    must(chroot("/data/root") == 0 && chdir("/") == 0, "chroot");
}
static void check_chroot(void) {
    if (access("/file", F_OK) != 0 || access("/data", F_OK) == 0) bad("the root directory is another one");
}
static int ends[2];
static void make_chroot_child(void) {
    make_root();
    must(pipe(ends) == 0, "pipe");
    if (fork() != 0) return;
    must(chroot("/data/root") == 0 && chdir("/") == 0, "chroot");
    rounds(check_chroot);
}
static void make_chroot_outside(void) {
    make_root();
    must(chdir("/") == 0 && chroot("/data/root") == 0, "chroot");
}
static void check_chroot_outside(void) {
    if (access("data/root/file", F_OK) != 0 || access("/file", F_OK) != 0) bad("the working directory is another one");
}

/* Landlock: nothing may be made any more; in a child no port may be bound to; in a thread alone. */
static void restrict_self(uint64_t files, uint64_t ports) {
    uint64_t handled[2] = {files, ports};
    int rules = (int)syscall(444, handled, ports != 0 ? sizeof handled : sizeof *handled, 0);
    must(rules >= 0, "landlock_create_ruleset");
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && syscall(446, rules, 0) == 0, "landlock_restrict_self");
    close(rules);
}
static void make_landlock(void) {
    restrict_self(1 << 8 /* LANDLOCK_ACCESS_FS_MAKE_REG */, 0);
}
static void make_landlock_net_child(void) {
    must(pipe(ends) == 0, "pipe");
    if (fork() != 0) return;
    restrict_self(0, 1 << 0 /* LANDLOCK_ACCESS_NET_BIND_TCP */);
    rounds(check_nothing);
}
static void *restricted(void *ready) {
    restrict_self(1 << 8, 0);
    *(volatile int *)ready = 1;
    for (;;) pause();
    return NULL;
}
static void make_landlock_thread(void) {
    static volatile int ready;
    pthread_t id;
    must(pthread_create(&id, NULL, restricted, (void *)&ready) == 0, "pthread_create");
    while (!ready) usleep(1000);
}
static void check_landlock(void) {
    if (open("/data/forbidden", O_CREAT | O_WRONLY, 0600) >= 0 || errno != EACCES) bad("what Landlock forbids is allowed");
}

/* seccomp(2): a call answers with an error of its own. */
static struct sock_filter answers[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sethostname, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 77),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};
static struct sock_fprog program = {sizeof answers / sizeof *answers, answers};
static volatile int from_thread;
static void *thread(void *nothing) {
    (void)nothing;
    for (;;) {
        from_thread = sethostname("x", 1) != 0 ? errno : 0;
        usleep(PERIOD_US / 10);
    }
    return NULL;
}
static void make_filter(void) {
    pthread_t id;
    pthread_create(&id, NULL, thread, NULL);
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG, &program) == 0, "seccomp");
    answers[2].k = SECCOMP_RET_ERRNO | 78;
    answers[1].k = SYS_setdomainname;
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program) == 0, "seccomp");
    usleep(PERIOD_US);
}
static void check_filter(void) {
    if (sethostname("x", 1) == 0 || errno != 77) bad("the first filter: %s", strerror(errno));
    if (setdomainname("x", 1) == 0 || errno != 78) bad("the second filter: %s", strerror(errno));
    if (from_thread != 77) bad("the filter of the other thread: %d", from_thread);
}
/* A filter of one thread alone. */
static void *filtered(void *nothing) {
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0, "seccomp");
    return thread(nothing);
}
static void make_filter_of_thread(void) {
    pthread_t id;
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
    pthread_create(&id, NULL, filtered, NULL);
    usleep(PERIOD_US);
}
static void check_filter_of_thread(void) {
    if (sethostname("x", 1) == 0 || errno == 77) bad("the filter is everybody's");
    if (from_thread != 77) bad("the filter of the other thread: %d", from_thread);
}
/* Nothing but reading and writing. */
static pid_t strict;
static void make_strict(void) {
    must(pipe(ends) == 0, "pipe");
    int ready[2];
    char byte;
    must(pipe(ready) == 0, "pipe");
    strict = fork();
    if (strict == 0) {
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
        syscall(SYS_write, ready[1], "x", 1);
        for (;;) syscall(SYS_read, ends[0], &byte, 1);
    }
    must(read(ready[0], &byte, 1) == 1, "a strict child");
}
static void check_strict(void) {
    char path[64], line[128];
    int mode = -1;
    snprintf(path, sizeof path, "/proc/%d/status", strict);
    FILE *file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) sscanf(line, "Seccomp: %d", &mode);
    if (file != NULL) fclose(file);
    if (mode != 1) bad("strict mode is %d", mode);
}
/* Calls that somebody else decides. */
static int listener;
static void make_listener(void) {
    answers[2].k = SECCOMP_RET_USER_NOTIF;
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
    listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    must(listener >= 0, "SECCOMP_FILTER_FLAG_NEW_LISTENER");
}
/* The same without anybody to decide. */
static void make_unheard(void) {
    make_listener();
    close(listener);
}
static void check_unheard(void) {
    if (sethostname("x", 1) == 0 || errno != ENOSYS) bad("the filter: %s", strerror(errno));
}

/* No memory is both written to and executed: CRIU's own code is. */
static void make_code(void) {
    must(prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0) == 0, "PR_SET_MDWE");
}

static const struct state states[] = {
    {"chroot", make_chroot, check_chroot},
    {"chroot-child", make_chroot_child, check_nothing},
    {"chroot-outside", make_chroot_outside, check_chroot_outside},
    {"landlock", make_landlock, check_landlock},
    {"landlock-net-child", make_landlock_net_child, check_nothing},
    {"landlock-thread", make_landlock_thread, check_nothing},
    {"filter", make_filter, check_filter},
    {"filter-of-thread", make_filter_of_thread, check_filter_of_thread},
    {"strict", make_strict, check_strict},
    {"listener", make_listener, check_nothing},
    {"code", make_code, check_nothing},
    {"unheard", make_unheard, check_unheard},
};

int main(int count, char **names) {
    (void)count;
    be(states, sizeof states / sizeof *states, names);
}
