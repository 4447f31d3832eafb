/* inherited: a child keeps the pages that its parent had when it was forked. The parent has made anew what
 * it has there itself: empty memory that it may only read, and that is locked. */
#include "specimen.h"

#define PAGES 8UL

static char *memory;

static unsigned char expected(size_t at) {
    return (unsigned char)(at / PAGE * 31 + at * 7 + 1);
}

static void check(void) {
    for (size_t at = 0; at < PAGES * PAGE; at++) {
        unsigned char found = (unsigned char)memory[at];
        if (found == expected(at)) continue;
        bad("byte %zu of page %zu is %x", at % PAGE, at / PAGE, found);
        at = (at / PAGE + 1) * PAGE - 1;
    }
}

static void renew(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    must(mmap(memory, PAGES * PAGE, PROT_READ, flags, -1, 0) == memory, "mmap");
    must(mlock(memory, PAGES * PAGE) == 0, "mlock");
}

int main(void) {
    int made[2];
    char go = 1;
    begin();
    /* Nothing touches it: in parent and child it is one mapping. */
    char *around = mmap(NULL, (PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(around != MAP_FAILED, "mmap");
    memory = around + PAGE;
    must(mprotect(memory, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
    for (size_t at = 0; at < PAGES * PAGE; at++) memory[at] = (char)expected(at);
    must(pipe(made) == 0, "pipe");
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0) {
        must(read(made[0], &go, 1) == 1, "read");
        rounds(check);
    }
    renew();
    must(write(made[1], &go, 1) == 1, "write");
    for (;;) pause();
}
