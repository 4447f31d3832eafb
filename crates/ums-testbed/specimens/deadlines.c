/* deadlines: timers that send signals, or nobody (timer_create(2), setitimer(2)), expire when they were to:
 * a move does not make them late. They are asked for what is left. */
#include "specimen.h"
#include <sys/time.h>
#include <time.h>

#define NANOS 1000000000LL
#define HOUR (3600 * NANOS)
#define PERIOD (7 * NANOS)
/* Some freezes together take longer, and some looks at a clock less. */
#define SLACK (150 * 1000000LL)

static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME};
#define CLOCKS (sizeof clocks / sizeof *clocks)
static timer_t once[CLOCKS], again;
static long long begun[CLOCKS], begun_again, begun_alarm;

static long long nanos(struct timespec time) { return time.tv_sec * NANOS + time.tv_nsec; }
static struct timespec spec(long long nanos) { return (struct timespec){nanos / NANOS, nanos % NANOS}; }
static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return nanos(time);
}

static timer_t make(clockid_t clock, long long value, long long interval) {
    struct sigevent nobody = {.sigev_notify = SIGEV_NONE};
    struct itimerspec time = {spec(interval), spec(value)};
    timer_t timer;
    must(timer_create(clock, &nobody, &timer) == 0, "timer_create");
    must(timer_settime(timer, 0, &time, NULL) == 0, "timer_settime");
    return timer;
}

static long long left_of(timer_t timer) {
    struct itimerspec time;
    must(timer_gettime(timer, &time) == 0, "timer_gettime");
    return nanos(time.it_value);
}

static long long alarm_left(void) {
    struct itimerval time;
    must(getitimer(ITIMER_REAL, &time) == 0, "getitimer");
    return time.it_value.tv_sec * NANOS + time.it_value.tv_usec * 1000LL;
}

/* Whether a timer that has `left` before it, asked between two moments, expires when it should. */
static void in_time(const char *what, long long before, long long left, long long after, long long due) {
    if (due < before + left - SLACK || due > after + left + SLACK)
        bad("%s is %lld us late", what, (before + left - due) / 1000);
}

static void check(void) {
    for (size_t at = 0; at < CLOCKS; at++) {
        long long before = now(), left = left_of(once[at]);
        in_time("a timer of an hour", before, left, now(), begun[at] + HOUR);
    }
    long long before = now(), left = left_of(again), after = now();
    long long turns = (before + left - begun_again + PERIOD / 2) / PERIOD;
    in_time("a periodic timer", before, left, after, begun_again + turns * PERIOD);
    before = now(), left = alarm_left();
    in_time("setitimer", before, left, now(), begun_alarm + HOUR);
}

int main(void) {
    begin();
    for (size_t at = 0; at < CLOCKS; at++) begun[at] = now(), once[at] = make(clocks[at], HOUR, 0);
    begun_again = now(), again = make(CLOCK_MONOTONIC, PERIOD, PERIOD);
    struct itimerval hour = {.it_value = {3600, 0}};
    begun_alarm = now();
    must(setitimer(ITIMER_REAL, &hour, NULL) == 0, "setitimer");
    rounds(check);
}
