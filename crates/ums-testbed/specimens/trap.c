/* trap: a SIGTRAP that is blocked stays pending. CRIU's own code in a process works by this signal. */
#include "specimen.h"

static void check(void) {
    sigset_t pending;
    sigpending(&pending);
    if (!sigismember(&pending, SIGTRAP)) bad("the signal is gone");
}

int main(void) {
    begin();
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTRAP);
    must(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0, "sigprocmask");
    must(raise(SIGTRAP) == 0, "raise");
    rounds(check);
}
