/* waits: threads in every kind of wait that a freeze interrupts. No handler is set, so none may end with
 * EINTR; one with a time-out may not end before it, one without may not end at all. An argument is the
 * size of memory that it has besides, MiB: it takes a while to dump. */
#include "specimen.h"
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

/* Time-outs of a thread's waits and of the first thread's, milliseconds. */
#define LONG_MS 1500
#define SHORT_MS 200

struct wait {
    const char *name;
    /* The call, with a time-out or without; what it returns when the time is over, and errno then. */
    int (*call)(long ms);
    int result, error;
    /* By which it ends. */
    clockid_t clock;
};

static struct timespec after(clockid_t clock, long ms) {
    struct timespec time = {0, 0};
    if (clock >= 0) clock_gettime(clock, &time);
    time.tv_nsec += ms % 1000 * 1000000;
    time.tv_sec += ms / 1000 + time.tv_nsec / 1000000000;
    time.tv_nsec %= 1000000000;
    return time;
}

/* No clock: a time from now on. */
#define NO_CLOCK (-1)

static double now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Those with a time-out. */

static int a_nanosleep(long ms) {
    struct timespec time = after(NO_CLOCK, ms);
    return syscall(SYS_nanosleep, &time, NULL);
}

static int a_clock_nanosleep(long ms) {
    struct timespec time = after(NO_CLOCK, ms), rest;
    return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, &rest);
}

static int a_clock_nanosleep_until(long ms) {
    struct timespec time = after(CLOCK_REALTIME, ms);
    return syscall(SYS_clock_nanosleep, CLOCK_REALTIME, TIMER_ABSTIME, &time, NULL);
}

static int a_poll(long ms) { return syscall(SYS_poll, NULL, 0, ms); }

static int a_ppoll(long ms) {
    struct timespec time = after(NO_CLOCK, ms);
    return ppoll(NULL, 0, &time, NULL);
}

static int a_select(long ms) {
    struct timeval time = {ms / 1000, ms % 1000 * 1000};
    return select(0, NULL, NULL, NULL, &time);
}

static int a_pselect(long ms) {
    struct timespec time = after(NO_CLOCK, ms);
    return pselect(0, NULL, NULL, NULL, &time, NULL);
}

static int an_epoll_wait(long ms) {
    struct epoll_event event;
    int set = epoll_create1(0), result = epoll_wait(set, &event, 1, ms), error = errno;
    close(set);
    errno = error;
    return result;
}

static int an_epoll_pwait2(long ms) {
    struct timespec time = after(NO_CLOCK, ms);
    struct epoll_event event;
    int set = epoll_create1(0), result = syscall(SYS_epoll_pwait2, set, &event, 1, &time, NULL, 0), error = errno;
    close(set);
    errno = error;
    return result;
}

static int a_futex(long ms) {
    struct timespec time = after(NO_CLOCK, ms);
    int word = 0;
    return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, NULL, 0);
}

static int a_futex_until(long ms) {
    struct timespec time = after(CLOCK_MONOTONIC, ms);
    int word = 0;
    return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &time, NULL, FUTEX_BITSET_MATCH_ANY);
}

static int a_sem_timedwait(long ms) {
    struct timespec time = after(CLOCK_REALTIME, ms);
    sem_t semaphore;
    sem_init(&semaphore, 0, 0);
    return sem_timedwait(&semaphore, &time);
}

static int a_sigtimedwait(long ms) {
    struct timespec time = after(NO_CLOCK, ms);
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR2);
    return sigtimedwait(&signals, NULL, &time);
}

static int a_recv(long ms) {
    struct timeval time = {ms / 1000, ms % 1000 * 1000};
    char byte;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return -2;
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    int result = recv(pair[0], &byte, 1, 0), error = errno;
    close(pair[0]);
    close(pair[1]);
    errno = error;
    return result;
}

static int an_accept(long ms) {
    struct timeval time = {ms / 1000, ms % 1000 * 1000};
    struct sockaddr_un any = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    /* With no name the kernel gives one. */
    must(bind(listener, (struct sockaddr *)&any, sizeof any.sun_family) == 0 && listen(listener, 1) == 0, "listen");
    int result = accept(listener, NULL, NULL), error = errno;
    close(listener);
    errno = error;
    return result;
}

static const struct wait TIMED[] = {
    {"nanosleep", a_nanosleep, 0, 0, CLOCK_MONOTONIC},
    {"clock_nanosleep", a_clock_nanosleep, 0, 0, CLOCK_MONOTONIC},
    {"clock_nanosleep until", a_clock_nanosleep_until, 0, 0, CLOCK_REALTIME},
    {"poll", a_poll, 0, 0, CLOCK_MONOTONIC},
    {"ppoll", a_ppoll, 0, 0, CLOCK_MONOTONIC},
    {"select", a_select, 0, 0, CLOCK_MONOTONIC},
    {"pselect", a_pselect, 0, 0, CLOCK_MONOTONIC},
    {"epoll_wait", an_epoll_wait, 0, 0, CLOCK_MONOTONIC},
    {"epoll_pwait2", an_epoll_pwait2, 0, 0, CLOCK_MONOTONIC},
    {"futex", a_futex, -1, ETIMEDOUT, CLOCK_MONOTONIC},
    {"futex until", a_futex_until, -1, ETIMEDOUT, CLOCK_MONOTONIC},
    {"sem_timedwait", a_sem_timedwait, -1, ETIMEDOUT, CLOCK_REALTIME},
    {"sigtimedwait", a_sigtimedwait, -1, EAGAIN, CLOCK_MONOTONIC},
    {"recv", a_recv, -1, EAGAIN, CLOCK_MONOTONIC},
    {"accept", an_accept, -1, EAGAIN, CLOCK_MONOTONIC},
};
#define TIMED_COUNT (sizeof TIMED / sizeof *TIMED)

static void time_out(const struct wait *wait, long ms) {
    double begun = now(wait->clock);
    errno = 0;
    int result = wait->call(ms), error = result < 0 ? errno : 0;
    double took = now(wait->clock) - begun;
    if (result != wait->result || error != wait->error) bad("%s: %d %s", wait->name, result, strerror(error));
    /* select(2) counts in microseconds. */
    if (took < ms / 1000.0 - 0.001) bad("%s of %ld ms took %.3f s", wait->name, ms, took);
}

static void *time_out_always(void *wait) {
    for (;;) time_out(wait, LONG_MS);
    return NULL;
}

/* Those without. */

static int for_ever_pause(long ms) { return (void)ms, pause(); }

static int for_ever_sigsuspend(long ms) {
    sigset_t none;
    sigfillset(&none);
    return (void)ms, sigsuspend(&none);
}

static int for_ever_sigwaitinfo(long ms) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR2);
    return (void)ms, sigwaitinfo(&signals, NULL);
}

static int for_ever_wait(long ms) { return (void)ms, waitpid(-1, NULL, 0); }

static int for_ever_pipe(long ms) {
    int ends[2];
    char byte;
    return (void)ms, pipe(ends) ? -2 : (int)read(ends[0], &byte, 1);
}

static int for_ever_inotify(long ms) {
    char event[512];
    return (void)ms, (int)read(inotify_init1(0), event, sizeof event);
}

static int for_ever_flock(long ms) {
    int held = open("/waits.lock", O_CREAT | O_RDWR, 0600), asks = open("/waits.lock", O_RDWR);
    return (void)ms, flock(held, LOCK_EX) ? -2 : flock(asks, LOCK_EX);
}

static int for_ever_msgrcv(long ms) {
    struct { long type; char text[8]; } message;
    return (void)ms, (int)msgrcv(msgget(IPC_PRIVATE, 0600), &message, sizeof message.text, 0, 0);
}

static int for_ever_epoll(long ms) {
    struct epoll_event event;
    return (void)ms, epoll_wait(epoll_create1(0), &event, 1, -1);
}

static int for_ever_poll(long ms) { return (void)ms, poll(NULL, 0, -1); }

static int for_ever_futex(long ms) {
    int word = 0;
    return (void)ms, syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

static int for_ever_aio(long ms) {
    aio_context_t context = 0;
    struct io_event event;
    return (void)ms, syscall(SYS_io_setup, 1, &context) ? -2 : syscall(SYS_io_getevents, context, 1, 1, &event, NULL);
}

static const struct wait FOR_EVER[] = {
    {"pause", for_ever_pause, 0, 0, CLOCK_MONOTONIC},
    {"sigsuspend", for_ever_sigsuspend, 0, 0, CLOCK_MONOTONIC},
    {"sigwaitinfo", for_ever_sigwaitinfo, 0, 0, CLOCK_MONOTONIC},
    {"wait", for_ever_wait, 0, 0, CLOCK_MONOTONIC},
    {"read of a pipe", for_ever_pipe, 0, 0, CLOCK_MONOTONIC},
    {"read of inotify", for_ever_inotify, 0, 0, CLOCK_MONOTONIC},
    {"flock", for_ever_flock, 0, 0, CLOCK_MONOTONIC},
    {"msgrcv", for_ever_msgrcv, 0, 0, CLOCK_MONOTONIC},
    {"epoll_wait for ever", for_ever_epoll, 0, 0, CLOCK_MONOTONIC},
    {"poll for ever", for_ever_poll, 0, 0, CLOCK_MONOTONIC},
    {"futex for ever", for_ever_futex, 0, 0, CLOCK_MONOTONIC},
    {"io_getevents", for_ever_aio, 0, 0, CLOCK_MONOTONIC},
};
#define FOR_EVER_COUNT (sizeof FOR_EVER / sizeof *FOR_EVER)

static void *for_ever(void *argument) {
    const struct wait *wait = argument;
    int result = wait->call(-1);
    bad("%s: %d %s", wait->name, result, strerror(errno));
    return NULL;
}

static void start(void *(*thread)(void *), const struct wait *wait) {
    pthread_t id;
    must(pthread_create(&id, NULL, thread, (void *)wait) == 0, wait->name);
}

/* The first thread is another case than the others: one more kind in each round. */
static void check(void) {
    static size_t next;
    time_out(&TIMED[next++ % TIMED_COUNT], SHORT_MS);
}

/* Memory that doesn't get smaller when it is compressed. It is shared, so that it is dumped in the freeze. */
static volatile uint64_t *memory;

static void fill(size_t mib) {
    size_t words = mib * 131072;
    uint64_t word = 88172645463325252U;
    memory = mmap(NULL, words * sizeof *memory, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < words; i++) {
        word ^= word << 13, word ^= word >> 7, word ^= word << 17;
        memory[i] = word;
    }
}

int main(int count, char **arguments) {
    sigset_t signals;
    begin();
    if (count > 1) fill(strtoul(arguments[1], NULL, 10));
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR2);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    must(fork() != 0 || pause() == 0, "a child");
    for (size_t i = 0; i < TIMED_COUNT; i++) start(time_out_always, &TIMED[i]);
    for (size_t i = 0; i < FOR_EVER_COUNT; i++) start(for_ever, &FOR_EVER[i]);
    rounds(check);
}
