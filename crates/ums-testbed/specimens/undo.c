/* undo: a System V semaphore that is taken with SEM_UNDO: it stays taken, and nobody puts it back any
 * more when the process ends after a move, which is not checked. */
#include "specimen.h"
#include <sys/sem.h>

static int set;

static void check(void) {
    int value = semctl(set, 0, GETVAL);
    if (value != 0) bad("the semaphore's value is %d", value);
}

int main(void) {
    begin();
    set = semget(IPC_PRIVATE, 1, 0600 | IPC_CREAT);
    must(set >= 0 && semctl(set, 0, SETVAL, 1) == 0, "semget");
    struct sembuf take = {.sem_num = 0, .sem_op = -1, .sem_flg = SEM_UNDO};
    must(semop(set, &take, 1) == 0, "semop");
    rounds(check);
}
