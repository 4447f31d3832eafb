/* signals: signals that wait with what was sent along, to the process and to a thread, masks, handlers,
 * the alternate stack and a signalfd are as they were. */
#include "specimen.h"
#include <pthread.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>

#define TO_PROCESS (SIGRTMIN + 2)
#define TO_THREAD (SIGRTMIN + 3)
#define TO_DESCRIPTOR (SIGRTMIN + 4)
#define VALUES 3

static char stack[1 << 16];
static int descriptor;

static void handler(int signal) { (void)signal; }

/* sigqueue(3) to a thread: glibc's needs a pthread_t. */
static void queue(pid_t thread, int signal, int value) {
    siginfo_t info = {.si_signo = signal, .si_code = SI_QUEUE};
    info.si_pid = getpid();
    info.si_uid = 7;
    info.si_value.sival_int = value;
    long done = thread ? syscall(SYS_rt_tgsigqueueinfo, getpid(), thread, signal, &info)
                       : syscall(SYS_rt_sigqueueinfo, getpid(), signal, &info);
    must(done == 0, "sigqueue");
}

/* Takes what waits, checks it, and sends it again. */
static void drain(int signal, pid_t thread, const char *whose) {
    sigset_t set;
    struct timespec none = {0};
    sigemptyset(&set);
    sigaddset(&set, signal);
    for (int value = 0; value < VALUES; value++) {
        siginfo_t info = {0};
        if (sigtimedwait(&set, &info, &none) != signal) bad("signal %d of %s is gone", value, whose);
        else if (info.si_code != SI_QUEUE || info.si_value.sival_int != value || info.si_uid != 7)
            bad("signal %d of %s: code %d, value %d, user %u", value, whose, info.si_code, info.si_value.sival_int, info.si_uid);
    }
    siginfo_t more;
    if (sigtimedwait(&set, &more, &none) != -1) bad("%s has one more signal", whose);
    for (int value = 0; value < VALUES; value++) queue(thread, signal, value);
}

static void drain_descriptor(void) {
    struct signalfd_siginfo info;
    for (int value = 0; value < VALUES; value++) {
        if (read(descriptor, &info, sizeof info) != sizeof info) bad("signalfd: signal %d is gone", value);
        else if (info.ssi_signo != (unsigned)TO_DESCRIPTOR || info.ssi_int != value)
            bad("signalfd: signal %u, value %d", info.ssi_signo, info.ssi_int);
    }
    if (read(descriptor, &info, sizeof info) != -1) bad("signalfd: signal %u too many", info.ssi_signo);
    for (int value = 0; value < VALUES; value++) queue(0, TO_DESCRIPTOR, value);
}

static void check_rest(void) {
    sigset_t mask;
    stack_t alternate;
    struct sigaction action;
    sigprocmask(SIG_SETMASK, NULL, &mask);
    if (!sigismember(&mask, TO_PROCESS) || sigismember(&mask, SIGUSR1) || !sigismember(&mask, SIGUSR2)) bad("the mask is another");
    sigaltstack(NULL, &alternate);
    if (alternate.ss_sp != stack || alternate.ss_size != sizeof stack || alternate.ss_flags != 0)
        bad("the alternate stack is %p of %zu, flags %x", alternate.ss_sp, alternate.ss_size, alternate.ss_flags);
    sigaction(SIGUSR1, NULL, &action);
    if (action.sa_handler != handler || !(action.sa_flags & SA_ONSTACK) || !(action.sa_flags & SA_NODEFER) || !sigismember(&action.sa_mask, SIGHUP))
        bad("the handler of SIGUSR1: flags %x", action.sa_flags);
    sigaction(SIGPIPE, NULL, &action);
    if (action.sa_handler != SIG_IGN) bad("SIGPIPE is not ignored");
}

static void check(void) {
    drain(TO_PROCESS, 0, "the process");
    drain_descriptor();
    check_rest();
}

static void *second(void *unused) {
    pid_t self = syscall(SYS_gettid);
    for (int value = 0; value < VALUES; value++) queue(self, TO_THREAD, value);
    for (;; usleep(PERIOD_US)) drain(TO_THREAD, self, "the thread");
    return unused;
}

int main(void) {
    pthread_t thread;
    sigset_t mask;
    begin();
    sigemptyset(&mask);
    for (int signal = TO_PROCESS; signal <= TO_DESCRIPTOR; signal++) sigaddset(&mask, signal);
    sigaddset(&mask, SIGUSR2);
    must(sigprocmask(SIG_SETMASK, &mask, NULL) == 0, "sigprocmask");
    sigset_t read_by;
    sigemptyset(&read_by);
    sigaddset(&read_by, TO_DESCRIPTOR);
    descriptor = signalfd(-1, &read_by, SFD_NONBLOCK);
    must(descriptor >= 0, "signalfd");
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    must(sigaltstack(&alternate, NULL) == 0, "sigaltstack");
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_NODEFER};
    sigaddset(&action.sa_mask, SIGHUP);
    must(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
    signal(SIGPIPE, SIG_IGN);
    for (int value = 0; value < VALUES; value++) {
        queue(0, TO_PROCESS, value);
        queue(0, TO_DESCRIPTOR, value);
    }
    must(pthread_create(&thread, NULL, second, NULL) == 0, "pthread_create");
    rounds(check);
}
