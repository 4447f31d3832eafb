// A process in one state. It says "ready" on its standard output, and writes down in $UMS_DAMAGES what becomes
// of it that should not.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LEN(x) (sizeof(x) / sizeof *(x))

static void damaged(const char *what) {
  char line[120];
  int len = snprintf(line, sizeof line, "%s: %s\n", what, strerror(errno));
  int fd = open(getenv("UMS_DAMAGES"), O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (write(fd, line, len) != len) _exit(99);
  close(fd);
}
static void ready(void) { if (write(1, "ready\n", 6) != 6) _exit(98); }
static void count(void) { for (volatile uint64_t i = 0;; i++); }

static int pair[2];
static struct timespec hour = {3600, 0};
static void *sleeps(void *a) { if (nanosleep(&hour, NULL)) damaged("nanosleep"); return a; }
static void *polls(void *a) { struct pollfd fd = {pair[0], POLLIN, 0}; if (poll(&fd, 1, 3600000) < 0) damaged("poll"); return a; }
static void *polls_on(void *a) { struct pollfd fd = {pair[0], POLLIN, 0}; if (poll(&fd, 1, -1) < 0) damaged("poll -1"); return a; }
static void *selects(void *a) { fd_set set; FD_ZERO(&set); FD_SET(pair[0], &set); if (pselect(pair[0] + 1, &set, NULL, NULL, &hour, NULL) < 0) damaged("pselect"); return a; }
static void *epolls(void *a) { struct epoll_event event; int fd = epoll_create1(0); if (epoll_wait(fd, &event, 1, 3600000) < 0) damaged("epoll_wait"); return a; }
static void *epolls_on(void *a) { struct epoll_event event; int fd = epoll_create1(0); if (epoll_wait(fd, &event, 1, -1) < 0) damaged("epoll_wait -1"); return a; }
static void *takes_signal(void *a) { sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR1); if (sigtimedwait(&set, NULL, &hour) < 0) damaged("sigtimedwait"); return a; }
static void *receives(void *a) { struct timeval time = {3600, 0}; setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time); char byte; if (recv(pair[0], &byte, 1, 0) < 0) damaged("recv"); return a; }
static void *reads(void *a) { int fds[2]; char byte; if (pipe(fds) || read(fds[0], &byte, 1) < 0) damaged("read"); return a; }
static void *futexes(void *a) { int word = 0; if (syscall(SYS_futex, &word, FUTEX_WAIT, 0, &hour, NULL, 0) < 0) damaged("futex"); return a; }
static void *waits_for_child(void *a) { if (waitpid(-1, NULL, 0) < 0) damaged("waitpid"); return a; }
static void *(*waits[])(void *) = {sleeps, polls, polls_on, selects, epolls, epolls_on, takes_signal, receives, reads, futexes, waits_for_child};

static volatile int caught;
static void catch(int signal) { caught = signal; }

static void wait_in_all(void) {
  sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR1); sigprocmask(SIG_BLOCK, &set, NULL);
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) _exit(97);
  // Each in a process of its own as its only thread: none can be spared.
  for (unsigned i = 0; i < LEN(waits); i++) if (!fork()) { if (waits[i] == waits_for_child && !fork()) { setpgid(0, 0); prctl(PR_SET_PDEATHSIG, SIGKILL); for (;;) pause(); } waits[i](NULL); _exit(0); }
}

static void filtered(void) {
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 1, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {LEN(code), code};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) _exit(96);
}

static void registered(void) {
  int fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
  struct uffdio_api api = {.api = UFFD_API};
  char *at = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(at, 7, 64 * 4096);
  struct uffdio_register range = {.range = {(uintptr_t)at, 64 * 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range)) _exit(95);
}

// A mapping that grows and shrinks over and over.
static void grow(void) {
  size_t len = 16 * 4096;
  char *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (;;) {
    size_t next = len < 1024 * 4096 ? len * 2 : 16 * 4096;
    char *to = mremap(at, len, next, MREMAP_MAYMOVE);
    if (to == MAP_FAILED) { damaged("mremap"); _exit(92); }
    at = to; len = next;
    at[len - 1] = 1;
  }
}

int main(int argc, char **argv) {
  const char *state = argc > 1 ? argv[1] : "";
  if (!strcmp(state, "waits")) { wait_in_all(); ready(); for (;;) pause(); }
  if (!strcmp(state, "filtered")) filtered();
  if (!strcmp(state, "registered")) registered();
  if (!strcmp(state, "direct") && open(argv[0], O_RDONLY | O_DIRECT) < 0) _exit(94);
  if (!strcmp(state, "vfork")) { ready(); if (!vfork()) count(); }
  if (!strcmp(state, "traced")) {
    pid_t child = fork();
    if (!child) count();
    if (ptrace(PTRACE_SEIZE, child, NULL, NULL)) _exit(93);
  }
  if (!strcmp(state, "grows")) { ready(); grow(); }
  if (!strcmp(state, "signals")) {
    int many[] = {SIGUSR1, SIGCHLD, SIGTRAP, SIGRTMIN + 3};
    for (size_t i = 0; i < LEN(many); i++) signal(many[i], catch);
    ready();
    for (size_t i = 0;; i++) { caught = 0; raise(many[i % LEN(many)]); if (caught != many[i % LEN(many)]) damaged("a signal"); }
  }
  if (!strcmp(state, "breakpoint")) {
    signal(SIGTRAP, catch);
    ready();
    for (;;) { caught = 0; raise(SIGTRAP); if (caught != SIGTRAP) damaged("SIGTRAP"); }
  }
  ready();
  count();
}
