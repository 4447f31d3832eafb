/* stopped: a child that SIGSTOP has stopped and one that SIGTSTP has stay stopped, go on with
 * SIGCONT, and the parent's waitpid(2) is told when they stop again. */
#include "specimen.h"

static const int signals[] = {SIGSTOP, SIGTSTP};
#define CHILDREN (sizeof signals / sizeof *signals)

/* How long a child may take to go on, or to be seen stopped, in steps of a millisecond. */
#define STEPS_MAX 5000

static pid_t children[CHILDREN];
/* How often each child has gone round, which it does not do while it is stopped. */
static volatile unsigned *lived, seen[CHILDREN];

static char state_of(pid_t pid) {
    char path[64], state = '?';
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (file == NULL) return state;
    if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1) state = '?';
    fclose(file);
    return state;
}

static void stop(size_t child) {
    int status;
    kill(children[child], signals[child]);
    pid_t told = waitpid(children[child], &status, WUNTRACED);
    if (told != children[child] || !WIFSTOPPED(status) || WSTOPSIG(status) != signals[child])
        bad("child %zu: waitpid is told %d, status %x", child, told, status);
    seen[child] = lived[child];
}

static void check(void) {
    for (size_t child = 0; child < CHILDREN; child++) {
        int step = 0;
        /* The signal that stops it again after a move may not have come to its turn yet. */
        while (state_of(children[child]) != 'T' && step++ < STEPS_MAX) usleep(1000);
        if (step >= STEPS_MAX) bad("child %zu is in state %c", child, state_of(children[child]));
        if (lived[child] != seen[child]) bad("child %zu has gone on while it was stopped", child);
        kill(children[child], SIGCONT);
        step = 0;
        while (state_of(children[child]) == 'T' && step++ < STEPS_MAX) usleep(1000);
        if (step >= STEPS_MAX) bad("child %zu does not go on", child);
        stop(child);
    }
}

int main(void) {
    begin();
    lived = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(lived != MAP_FAILED, "mmap");
    for (size_t child = 0; child < CHILDREN; child++) {
        children[child] = fork();
        must(children[child] >= 0, "fork");
        /* In a group of its own whose parent is elsewhere in the session: an orphaned group ignores
         * SIGTSTP. */
        setpgid(children[child], 0);
        for (; children[child] == 0; usleep(1000)) lived[child]++;
        stop(child);
    }
    rounds(check);
}
