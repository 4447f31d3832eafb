/* What every specimen has: a state that is set up once, and a check of it three times a second.
 *
 * It writes to /specimen.log, which moves with the service: `tick N` for each round, `BAD what` for
 * each damage. A state that can't be set up is damage too, and no tick follows it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Pause between two rounds, microseconds. */
#define PERIOD_US 300000

#define PAGE 4096UL

__attribute__((format(printf, 1, 2))) static void bad(const char *format, ...) {
    va_list arguments;
    char line[512];
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    printf("BAD %s\n", line);
}

/* Ends the specimen unless what it needs was done. */
static void must(int done, const char *what) {
    if (done) return;
    bad("cannot set up: %s: %s", what, strerror(errno));
    exit(1);
}

/* To be called before anything else: children write to the same log. */
static void begin(void) {
    int log = open("/specimen.log", O_CREAT | O_WRONLY | O_APPEND, 0644);
    if (log < 0 || dup2(log, STDOUT_FILENO) < 0) exit(2);
    close(log);
    setvbuf(stdout, NULL, _IOLBF, 0);
}

/* A state that a program can be in: how it comes about, and what must hold from then on. */
struct state {
    const char *name;
    void (*make)(void);
    void (*check)(void);
};

/* Checks until it is killed. */
__attribute__((noreturn)) static void rounds(void (*check)(void)) {
    for (unsigned long tick = 0;; tick++) {
        check();
        printf("tick %lu\n", tick);
        usleep(PERIOD_US);
    }
}

/* The states that are chosen by their names; all of them have to be known. */
static const struct state *chosen[32];
static size_t chosen_count;

__attribute__((unused)) static void check_chosen(void) {
    for (size_t which = 0; which < chosen_count; which++) chosen[which]->check();
}

/* Brings about the states of these that the arguments name, and checks them until it is killed. */
__attribute__((unused, noreturn)) static void be(const struct state *states, size_t count, char **names) {
    begin();
    must(names[1] != NULL, "no state is named");
    for (char **name = names + 1; *name != NULL; name++) {
        size_t which = 0;
        while (which < count && strcmp(states[which].name, *name) != 0) which++;
        must(which < count && chosen_count < sizeof chosen / sizeof *chosen, *name);
        states[which].make();
        chosen[chosen_count++] = &states[which];
    }
    rounds(check_chosen);
}
