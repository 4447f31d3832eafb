/* eventfds: counters that need more than 32 bits, and flags, are as they were; with `semaphore`, one that
 * counts down by one (EFD_SEMAPHORE), which is not checked. */
#include "specimen.h"
#include <poll.h>
#include <sys/eventfd.h>

#define LARGE (1ULL << 40 | 12345)

static int large, empty, semaphore = -1;

static void check(void) {
    uint64_t value = 0;
    if (read(large, &value, sizeof value) != sizeof value || value != LARGE) bad("the large counter is %llu", (unsigned long long)value);
    value = LARGE;
    if (write(large, &value, sizeof value) != sizeof value) bad("the large counter can't be written");
    if (read(empty, &value, sizeof value) != -1 || errno != EAGAIN) bad("the empty counter is %llu", (unsigned long long)value);
    if (!(fcntl(empty, F_GETFD) & FD_CLOEXEC)) bad("the empty counter is handed on");
    struct pollfd wanted = {.fd = semaphore, .events = POLLIN};
    if (semaphore >= 0 && (poll(&wanted, 1, 0) != 1 || wanted.revents != POLLIN)) bad("the semaphore has %x", wanted.revents);
}

int main(int count, char **arguments) {
    uint64_t value = LARGE;
    begin();
    large = eventfd(0, EFD_NONBLOCK);
    empty = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    must(large >= 0 && empty >= 0 && write(large, &value, sizeof value) == sizeof value, "eventfd");
    if (count == 2 && !strcmp(arguments[1], "semaphore")) semaphore = eventfd(3, EFD_SEMAPHORE);
    rounds(check);
}
