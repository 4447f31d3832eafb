/* timers: descriptors of timerfd_create(2) go on firing: one that fires again and again and has fired
 * unread, and one that is set to a moment and must not fire before it. */
#include "specimen.h"
#include <sys/timerfd.h>
#include <time.h>

/* A period shorter than a freeze, so that it has expired in every one. */
#define SHORT_NS 20000000L
/* Seconds until the moment. */
#define LATER_S 3

static int again, once;
static struct timespec moment;

static void set_moment(void) {
    clock_gettime(CLOCK_MONOTONIC, &moment);
    moment.tv_sec += LATER_S;
    struct itimerspec at = {.it_value = moment};
    must(timerfd_settime(once, TFD_TIMER_ABSTIME, &at, NULL) == 0, "timerfd_settime");
}

static int is_before(struct timespec one, struct timespec other) {
    return one.tv_sec < other.tv_sec || (one.tv_sec == other.tv_sec && one.tv_nsec < other.tv_nsec);
}

static void check(void) {
    uint64_t times = 0;
    if (read(again, &times, sizeof times) != sizeof times) bad("the periodic timer does not fire: %s", strerror(errno));
    if (read(once, &times, sizeof times) != sizeof times) return;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (is_before(now, moment)) bad("the timer fired before its moment");
    set_moment();
}

int main(void) {
    begin();
    again = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    once = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec period = {{0, SHORT_NS}, {0, SHORT_NS}};
    must(timerfd_settime(again, 0, &period, NULL) == 0, "timerfd_settime");
    set_moment();
    usleep(PERIOD_US);
    rounds(check);
}
