/* orphans MIB CHILDREN: memory that children share since fork(2) with a parent that has ended, and with
 * each other. Run with a memory limit that allows for one copy and not for as many as there are children. */
#include "specimen.h"

static void check(void) {}

int main(int count, char **arguments) {
    begin();
    must(count == 3, "two arguments");
    size_t bytes = strtoul(arguments[1], NULL, 10) << 20;
    pid_t parent = fork();
    must(parent >= 0, "fork");
    if (parent == 0) {
        char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        must(memory != MAP_FAILED, "mmap");
        memset(memory, 7, bytes);
        for (long child = strtol(arguments[2], NULL, 10); child > 0; child--) {
            pid_t pid = fork();
            must(pid >= 0, "fork");
            while (pid == 0) {
                for (size_t i = 0; i < bytes; i += PAGE)
                    if (memory[i] != 7) bad("process %d: byte %zu is %d", getpid(), i, memory[i]);
                usleep(PERIOD_US);
            }
        }
        _exit(0);
    }
    must(waitpid(parent, NULL, 0) == parent, "the parent's end");
    rounds(check);
}
