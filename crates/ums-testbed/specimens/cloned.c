/* cloned: a child that shares with its parent what processes seldom share, and lives on.
 *
 * Argument: `memory` (CLONE_VM), `places` (CLONE_FS: working directory, root and umask), or `vfork`
 * (the parent waits for a child of vfork(2), which does not end). */
#include "specimen.h"
#include <sched.h>
#include <sys/syscall.h>

static char stack[64 * 1024];
static volatile unsigned counted;
static mode_t umask_of_child = 0123;
static const char *shared;

static int child(void *argument) {
    (void)argument;
    if (strcmp(shared, "places") == 0) umask(umask_of_child);
    for (;;) {
        counted++;
        usleep(1000);
    }
    return 0;
}

static void check(void) {
    if (strcmp(shared, "memory") == 0) {
        unsigned before = counted;
        usleep(PERIOD_US / 3);
        if (counted == before) bad("the child's writes are not seen");
    }
    if (strcmp(shared, "places") == 0) {
        mode_t mask = umask(umask_of_child);
        if (mask != umask_of_child) bad("the child's umask is not seen: %o", mask);
    }
}

/* A process that waits for its child as long as that lives. */
static void wait_in_vfork(void) {
    if (fork() != 0) return;
    if (vfork() == 0) {
        for (;;) syscall(SYS_pause);
    }
}

int main(int count, char **arguments) {
    begin();
    must(count == 2, "one argument");
    shared = arguments[1];
    int flags = strcmp(shared, "memory") == 0 ? CLONE_VM : CLONE_FS;
    if (strcmp(shared, "vfork") == 0)
        wait_in_vfork();
    else
        must(clone(child, stack + sizeof stack, flags | SIGCHLD, NULL) > 0, "clone");
    usleep(PERIOD_US);
    rounds(check);
}
