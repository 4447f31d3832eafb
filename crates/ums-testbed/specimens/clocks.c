/* clocks: POSIX timers by each clock, relative, to a moment and periodic, and the three interval timers
 * never come early, come when they are due, and go on. */
#include "specimen.h"
#include <sys/time.h>
#include <time.h>

#define FAR_S 3600
/* How often a periodic timer comes, nanoseconds. */
#define OFTEN_NS 50000000L
#define SIGNAL (SIGRTMIN + 5)

static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME};
static const char *const names[] = {"CLOCK_REALTIME", "CLOCK_MONOTONIC", "CLOCK_BOOTTIME"};
#define CLOCKS (sizeof clocks / sizeof *clocks)

static struct kind {
    timer_t relative, absolute, periodic;
    struct timespec begun;
    volatile sig_atomic_t came;
} kinds[CLOCKS];
static volatile sig_atomic_t alarms;

static void came(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    kinds[info->si_value.sival_int % CLOCKS].came++;
    if (info->si_value.sival_int >= (int)CLOCKS) bad("%s: it came %d s early", names[info->si_value.sival_int % CLOCKS], FAR_S);
}
static void alarmed(int signal) { (void)signal, alarms++; }

static timer_t timer(size_t clock, int value) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGNAL};
    timer_t made;
    event.sigev_value.sival_int = value;
    must(timer_create(clocks[clock], &event, &made) == 0, "timer_create");
    return made;
}

/* What is left of an hour that began then must not be less than what that clock says. */
static void not_early(const char *name, const char *what, struct kind *kind, timer_t timer, clockid_t clock) {
    struct itimerspec left;
    struct timespec now;
    must(timer_gettime(timer, &left) == 0, "timer_gettime");
    clock_gettime(clock, &now);
    double due = FAR_S - (now.tv_sec - kind->begun.tv_sec) - (now.tv_nsec - kind->begun.tv_nsec) / 1e9;
    double is = left.it_value.tv_sec + left.it_value.tv_nsec / 1e9;
    if (is < due - 0.01) bad("%s, %s: %.3f s are left of %.3f", name, what, is, due);
    if (is > FAR_S) bad("%s, %s: %.3f s are left", name, what, is);
}

/* Signals cut every sleep short. */
static void wait_a_second(void) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec++;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) continue;
}

static void check(void) {
    static sig_atomic_t last[CLOCKS], last_alarms;
    struct itimerval left;
    for (size_t at = 0; at < CLOCKS; at++) {
        not_early(names[at], "relative", &kinds[at], kinds[at].relative, clocks[at]);
        not_early(names[at], "absolute", &kinds[at], kinds[at].absolute, clocks[at]);
        struct itimerspec often;
        timer_gettime(kinds[at].periodic, &often);
        if (often.it_interval.tv_nsec != OFTEN_NS) bad("%s: its period is %ld ns", names[at], often.it_interval.tv_nsec);
        if (kinds[at].came == last[at]) bad("%s: the periodic timer does not come", names[at]);
        last[at] = kinds[at].came;
    }
    if (alarms == last_alarms) bad("ITIMER_REAL does not come");
    last_alarms = alarms;
    getitimer(ITIMER_VIRTUAL, &left);
    if (left.it_interval.tv_sec != 7 || left.it_value.tv_sec < FAR_S / 2) bad("ITIMER_VIRTUAL: %ld s every %ld", left.it_value.tv_sec, left.it_interval.tv_sec);
    getitimer(ITIMER_PROF, &left);
    if (left.it_interval.tv_sec != 9 || left.it_value.tv_sec < FAR_S / 2) bad("ITIMER_PROF: %ld s every %ld", left.it_value.tv_sec, left.it_interval.tv_sec);
    wait_a_second();
}

int main(void) {
    begin();
    struct sigaction action = {.sa_sigaction = came, .sa_flags = SA_SIGINFO | SA_RESTART};
    must(sigaction(SIGNAL, &action, NULL) == 0, "sigaction");
    signal(SIGALRM, alarmed);
    for (size_t at = 0; at < CLOCKS; at++) {
        struct kind *kind = &kinds[at];
        struct itimerspec far = {.it_value.tv_sec = FAR_S}, often = {{0, OFTEN_NS}, {0, OFTEN_NS}};
        kind->relative = timer(at, CLOCKS + at);
        kind->absolute = timer(at, CLOCKS + at);
        kind->periodic = timer(at, at);
        clock_gettime(clocks[at], &kind->begun);
        must(timer_settime(kind->relative, 0, &far, NULL) == 0, "timer_settime");
        far.it_value.tv_sec += kind->begun.tv_sec;
        far.it_value.tv_nsec = kind->begun.tv_nsec;
        must(timer_settime(kind->absolute, TIMER_ABSTIME, &far, NULL) == 0, "timer_settime");
        must(timer_settime(kind->periodic, 0, &often, NULL) == 0, "timer_settime");
    }
    struct itimerval real = {{0, 70000}, {0, 70000}}, virtual = {{7, 0}, {FAR_S, 0}}, profile = {{9, 0}, {FAR_S, 0}};
    must(setitimer(ITIMER_REAL, &real, NULL) == 0 && setitimer(ITIMER_VIRTUAL, &virtual, NULL) == 0 && setitimer(ITIMER_PROF, &profile, NULL) == 0, "setitimer");
    wait_a_second();
    rounds(check);
}
