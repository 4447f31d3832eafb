/* leases: leases of files (fcntl(2), F_SETLEASE). Arguments: the states, by name. */
#include "specimen.h"

static int leased(const char *path, int access, int lease) {
    int fd = open(path, O_CREAT | O_RDWR | O_TRUNC, 0644);
    must(fd >= 0 && write(fd, "content", 7) == 7 && close(fd) == 0, path);
    fd = open(path, access);
    must(fd >= 0 && fcntl(fd, F_SETLEASE, lease) == 0, "F_SETLEASE");
    must(fcntl(fd, F_SETSIG, SIGUSR1) == 0, "F_SETSIG");
    return fd;
}

static void check_lease(const char *what, int fd, int lease) {
    int now = fcntl(fd, F_GETLEASE);
    if (now != lease) bad("the lease for %s is %d, not %d", what, now, lease);
    if (fcntl(fd, F_GETSIG) != SIGUSR1) bad("the signal for %s is %d", what, fcntl(fd, F_GETSIG));
    if (fcntl(fd, F_GETOWN) != getpid()) bad("the owner for %s is %d", what, fcntl(fd, F_GETOWN));
}

/* With a copy that a child has, which does nothing. */
static int reading, writing;
static void make_read(void) {
    reading = leased("/leased-reading", O_RDONLY, F_RDLCK);
    must(dup(reading) >= 0, "dup");
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0)
        for (;;) pause();
}
static void check_read(void) { check_lease("reading", reading, F_RDLCK); }

static void make_write(void) { writing = leased("/leased-writing", O_WRONLY, F_WRLCK); }
static void check_write(void) { check_lease("writing", writing, F_WRLCK); }

/* A child has the mapping. */
static void make_mapped(void) {
    writing = leased("/leased-mapped", O_RDWR, F_WRLCK);
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child > 0) return;
    must(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, writing, 0) != MAP_FAILED, "mmap");
    for (;;) pause();
}

/* Broken anew in each round: the kernel ends it after a while (/proc/sys/fs/lease-break-time). */
static int breaking;
static void make_breaking(void) {
    signal(SIGUSR1, SIG_IGN);
    breaking = leased("/leased-breaking", O_RDONLY, F_RDLCK);
}
static void check_breaking(void) {
    fcntl(breaking, F_SETLEASE, F_UNLCK);
    if (fcntl(breaking, F_SETLEASE, F_RDLCK) != 0) bad("F_SETLEASE: %s", strerror(errno));
    if (open("/leased-breaking", O_WRONLY | O_NONBLOCK) >= 0 || errno != EWOULDBLOCK) bad("nobody was told");
}

static const struct state states[] = {
    {"read", make_read, check_read},
    {"write", make_write, check_write},
    {"mapped", make_mapped, check_write},
    {"breaking", make_breaking, check_breaking},
};

int main(int count, char **names) {
    (void)count;
    be(states, sizeof states / sizeof *states, names);
}
