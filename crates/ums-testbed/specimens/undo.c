/* undo: System V semaphores that a child has taken, and given, with SEM_UNDO: when it ends, which it does
 * in each round, they are as they were. A parent has something to put back as well, and stays. */
#include "specimen.h"
#include <sys/sem.h>

/* Semaphores: one that is 1 and taken, one that is 40 and given 300 more, one that nobody undoes. */
static int set;
static pid_t child;

static void is(int number, int wanted, const char *when) {
    int value = semctl(set, number, GETVAL);
    if (value != wanted) bad("semaphore %d is %d and not %d %s", number, value, wanted, when);
}

static void change(int undo) {
    struct sembuf both[] = {{0, -1, undo}, {1, 300, undo}};
    must(semop(set, both, 2) == 0, "semop");
}

static void make_child(void) {
    int ready[2];
    char byte;
    must(pipe(ready) == 0, "pipe");
    child = fork();
    must(child >= 0, "fork");
    if (child == 0) {
        change(SEM_UNDO);
        must(write(ready[1], "x", 1) == 1, "write");
        for (;;) pause();
    }
    must(read(ready[0], &byte, 1) == 1, "a child");
    close(ready[0]);
    close(ready[1]);
}

static void check(void) {
    is(0, 0, "while it is taken");
    is(1, 340, "while it is given");
    is(2, 7, "and nobody's");
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    is(0, 1, "when the child has ended");
    is(1, 40, "when the child has ended");
    is(2, 7, "and nobody's");
    make_child();
}

int main(void) {
    begin();
    set = semget(IPC_PRIVATE, 3, 0600 | IPC_CREAT);
    must(set >= 0 && semctl(set, 0, SETVAL, 1) == 0 && semctl(set, 1, SETVAL, 40) == 0, "semget");
    struct sembuf give = {.sem_num = 2, .sem_op = 7};
    must(semop(set, &give, 1) == 0, "semop");
    make_child();
    rounds(check);
}
