/* alarms: a POSIX timer (timer_create(2)) that signals one thread (SIGEV_THREAD_ID) goes on doing so.
 *
 * other: made by the first thread for the second one. self: made by the second thread for itself.
 * cpu: the second thread's, of its own CPU time. gone: for a thread that has ended. */
#include "specimen.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>

/* Shorter than a round, so that each round sees it. */
#define PERIOD_NS 20000000L

static const char *what;
static atomic_int worker, here, elsewhere, made;
static pthread_t thread;

static void on_alarm(int number) {
    (void)number;
    atomic_fetch_add(syscall(SYS_gettid) == atomic_load(&worker) ? &here : &elsewhere, 1);
}

static int is(const char *name) { return strcmp(what, name) == 0; }

static void start_timer(clockid_t clock, int thread) {
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN};
    event._sigev_un._tid = thread;
    struct itimerspec period = {{0, PERIOD_NS}, {0, PERIOD_NS}};
    timer_t timer;
    must(timer_create(clock, &event, &timer) == 0, "timer_create");
    must(timer_settime(timer, 0, &period, NULL) == 0, "timer_settime");
}

static void *work(void *unused) {
    int number = syscall(SYS_gettid);
    if (is("self")) start_timer(CLOCK_MONOTONIC, number);
    if (is("cpu")) start_timer(CLOCK_THREAD_CPUTIME_ID, number);
    atomic_store(&worker, number);
    while (!is("gone") || !atomic_load(&made)) {
        /* A third of the time: others need the CPUs too. */
        for (volatile int turn = 0; is("cpu") && turn < 2000000; turn++) {}
        usleep(PERIOD_NS / 1000);
    }
    return unused;
}

/* Whether the timer must have signalled by now: after many of its periods, by its own clock. */
static int due(clockid_t clock, const struct timespec *from) {
    struct timespec now;
    must(clock_gettime(clock, &now) == 0, "clock_gettime");
    return (now.tv_sec - from->tv_sec) * 1000000000L + now.tv_nsec - from->tv_nsec > 50 * PERIOD_NS;
}

/* A signal comes, however busy the machine is. */
static void check(void) {
    if (atomic_exchange(&elsewhere, 0)) bad("a signal came to another thread");
    if (is("gone")) return;
    clockid_t clock = CLOCK_MONOTONIC;
    if (is("cpu")) must(pthread_getcpuclockid(thread, &clock) == 0, "pthread_getcpuclockid");
    struct timespec from;
    must(clock_gettime(clock, &from) == 0, "clock_gettime");
    while (!atomic_load(&here) && !due(clock, &from)) usleep(PERIOD_NS / 1000);
    if (!atomic_exchange(&here, 0)) bad("no signal has come");
}

int main(int count, char **arguments) {
    begin();
    must(count == 2, "one argument");
    what = arguments[1];
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    must(sigaction(SIGRTMIN, &action, NULL) == 0, "sigaction");
    must(pthread_create(&thread, NULL, work, NULL) == 0, "pthread_create");
    while (!atomic_load(&worker)) usleep(1000);
    if (is("other") || is("gone")) start_timer(CLOCK_MONOTONIC, atomic_load(&worker));
    atomic_store(&made, 1);
    if (is("gone")) must(pthread_join(thread, NULL) == 0, "pthread_join");
    usleep(PERIOD_US);
    rounds(check);
}
