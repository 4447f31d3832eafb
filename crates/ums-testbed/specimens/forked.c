/* forked MIB CHILDREN: memory that all of them share since fork(2), and that none of them changes.
 * Run with a memory limit that allows for one copy and not for as many as there are processes. */
#include "specimen.h"

/* Of each page one word is set and compared. */
#define STEP (PAGE / sizeof(uint64_t))

static uint64_t *memory;
static size_t words;

static void compare(void) {
    for (size_t i = 0; i < words; i += STEP)
        if (memory[i] != i * 7 + 1) {
            bad("process %d: word %zu is %lx", getpid(), i, memory[i]);
            return;
        }
}

static void check(void) {
    int status;
    pid_t ended;
    compare();
    while ((ended = waitpid(-1, &status, WNOHANG)) > 0)
        bad("child %d ended with status %x", ended, status);
}

int main(int count, char **arguments) {
    begin();
    must(count == 3, "two arguments");
    words = strtoul(arguments[1], NULL, 10) << 17;
    memory = mmap(NULL, words * sizeof *memory, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED, "mmap");
    for (size_t i = 0; i < words; i += STEP) memory[i] = i * 7 + 1;
    for (long child = strtol(arguments[2], NULL, 10); child > 0; child--) {
        pid_t pid = fork();
        must(pid >= 0, "fork");
        while (pid == 0) {
            compare();
            usleep(PERIOD_US);
        }
    }
    rounds(check);
}
