/* stray: a process in a session whose leader is gone, below a parent that has had a session of its own
 * since. CRIU can't make such a session again. */
#include "specimen.h"

static pid_t session, stray;

static void check(void) {
    if (getsid(stray) != session) bad("it is in another session");
}

/* Makes the stray, and has a session of its own from then on. */
__attribute__((noreturn)) static void parent(int control) {
    pid_t child = fork();
    while (child == 0) pause();
    if (setsid() < 0 || write(control, &child, sizeof child) != sizeof child) _exit(1);
    for (;;) pause();
}

int main(void) {
    begin();
    int control[2];
    must(pipe(control) == 0, "pipe");
    session = fork();
    if (session == 0) {
        if (setsid() < 0) _exit(1);
        if (fork() == 0) parent(control[1]);
        _exit(0);
    }
    must(session > 0 && waitpid(session, NULL, 0) == session, "the leader");
    must(read(control[0], &stray, sizeof stray) == sizeof stray, "the stray");
    rounds(check);
}
