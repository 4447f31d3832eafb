/* pipes: pipes, descriptors that signal, and locks.
 *
 * Argument: the name of the state, as in the table at the end. */
#include "specimen.h"
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static int ends[2], other[2], file, second;
static pid_t child;

static void expect(int from, const char *text) {
    char got[256] = "";
    if (read(from, got, sizeof got - 1) < 0 || strcmp(got, text)) bad("`%s` is there and not `%s`", got, text);
}
static void put(int to, const char *text) {
    if (write(to, text, strlen(text)) != (ssize_t)strlen(text)) bad("write: %s", strerror(errno));
}

/* A size of its own, and more in it than the default holds. */
#define SIZE (1 << 20)
static char content[SIZE];
static void size_begin(void) {
    must(pipe2(ends, O_NONBLOCK) == 0 && fcntl(ends[0], F_SETPIPE_SZ, SIZE) == SIZE, "F_SETPIPE_SZ");
    must(write(ends[1], content, SIZE) == SIZE, "write");
    must(pipe2(other, O_NONBLOCK) == 0 && fcntl(other[0], F_SETPIPE_SZ, 4096) == 4096, "F_SETPIPE_SZ");
}
static void size(void) {
    if (fcntl(ends[0], F_GETPIPE_SZ) != SIZE) bad("the size is %d", fcntl(ends[0], F_GETPIPE_SZ));
    if (fcntl(other[1], F_GETPIPE_SZ) != 4096) bad("the small size is %d", fcntl(other[1], F_GETPIPE_SZ));
    size_t read_so_far = 0;
    for (ssize_t length; (length = read(ends[0], content, SIZE)) > 0;) read_so_far += length;
    if (read_so_far != SIZE) bad("%zu bytes", read_so_far);
    if (write(ends[1], content, SIZE) != SIZE) bad("write: %s", strerror(errno));
}

/* A pipe with a name. */
static void named_begin(void) {
    must(mkfifo("/srv-fifo", 0600) == 0, "mkfifo");
    must((file = open("/srv-fifo", O_RDWR | O_NONBLOCK)) >= 0, "open");
    put(file, "queued");
    must(mkfifo("/srv-removed", 0600) == 0, "mkfifo");
    must((ends[0] = open("/srv-removed", O_RDONLY | O_NONBLOCK)) >= 0, "open");
    must((ends[1] = open("/srv-removed", O_WRONLY)) >= 0, "open");
    must(unlink("/srv-removed") == 0, "unlink");
    put(ends[1], "queued too");
}
static void named(void) {
    expect(file, "queued");
    expect(ends[0], "queued too");
    put(file, "queued");
    put(ends[1], "queued too");
    if (!access("/srv-removed", F_OK)) bad("the removed pipe is back");
}

/* Pages of memory and of a file lent to a pipe. */
static char page[4096] __attribute__((aligned(4096)));
static void lend(void) {
    strcpy(page, "lent");
    struct iovec piece = {page, 5};
    off_t from = 0;
    must(vmsplice(ends[1], &piece, 1, 0) == 5, "vmsplice");
    must(splice(file, &from, ends[1], NULL, 5, 0) == 5, "splice");
    must(tee(ends[0], other[1], 10, 0) > 0, "tee");
}
static void lent_begin(void) {
    must(pipe2(ends, O_NONBLOCK) == 0 && pipe2(other, O_NONBLOCK) == 0, "pipe");
    must((file = open("/srv-file", O_CREAT | O_RDWR, 0600)) >= 0 && write(file, "file", 5) == 5, "write");
    lend();
}
static void lent(void) {
    char got[64] = "";
    if (read(ends[0], got, sizeof got) != 10 || strcmp(got, "lent") || strcmp(got + 5, "file")) bad("`%s` and `%s`", got, got + 5);
    memset(got, 0, sizeof got);
    if (read(other[0], got, sizeof got) < 5 || strcmp(got, "lent")) bad("the copy: `%s`", got);
    lend();
}

/* A pipe that nobody writes to any more. */
static void ended_begin(void) { must(pipe(ends) == 0, "pipe"); put(ends[1], "last"); close(ends[1]); }
static void ended(void) {
    char got;
    expect(ends[0], "last");
    if (read(ends[0], &got, 1) != 0) bad("no end");
    close(ends[0]);
    ended_begin();
}

static void packets_begin(void) { must(pipe2(ends, O_DIRECT) == 0, "pipe"); put(ends[1], "one"); put(ends[1], "two"); }
static void nothing(void) {}

/* Descriptors that signal their owner: a process, a group, a thread; with a signal of their own. */
static volatile sig_atomic_t signalled, by;
static void note(int number, siginfo_t *about, void *context) {
    (void)number, (void)context;
    signalled++;
    by = about->si_fd;
}
#define OWNED 3
static int owned[OWNED][2];
static int signal_of;
static void owners_begin(void) {
    struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO | SA_RESTART};
    signal_of = SIGRTMIN + 3;
    must(sigaction(signal_of, &action, NULL) == 0, "sigaction");
    must(setpgid(0, 0) == 0 || getpid() == 1, "setpgid");
    must(pipe(owned[0]) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, owned[1]) == 0, "pipe");
    must((owned[2][0] = socket(AF_INET, SOCK_DGRAM, 0)) >= 0, "socket");
    struct f_owner_ex owners[OWNED] = {{F_OWNER_PID, getpid()}, {F_OWNER_PGRP, getpgid(0)}, {F_OWNER_TID, getpid()}};
    for (int at = 0; at < OWNED; at++) {
        must(fcntl(owned[at][0], F_SETOWN_EX, &owners[at]) == 0, "F_SETOWN_EX");
        must(fcntl(owned[at][0], F_SETSIG, signal_of) == 0, "F_SETSIG");
        must(fcntl(owned[at][0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0, "O_ASYNC");
    }
}
static void owners(void) {
    for (int at = 0; at < OWNED; at++) {
        static const int types[OWNED] = {F_OWNER_PID, F_OWNER_PGRP, F_OWNER_TID};
        struct f_owner_ex is = {0};
        int should = at == 1 ? getpgid(0) : getpid();
        if (fcntl(owned[at][0], F_GETOWN_EX, &is)) bad("F_GETOWN_EX %d: %s", at, strerror(errno));
        if ((int)is.type != types[at] || is.pid != should) bad("owner of %d: type %d, %d and not %d", at, is.type, is.pid, should);
        if (fcntl(owned[at][0], F_GETSIG) != signal_of) bad("signal of %d: %d", at, fcntl(owned[at][0], F_GETSIG));
        if (!(fcntl(owned[at][0], F_GETFL) & O_ASYNC)) bad("%d is not O_ASYNC", at);
    }
    for (int at = 0; at < 2; at++) {
        char got[8];
        signalled = 0, by = -1;
        put(owned[at][1], "x");
        for (int times = 0; !signalled && times < 100; times++) usleep(1000);
        if (!signalled || by != owned[at][0]) bad("no signal for %d (of %d)", owned[at][0], (int)by);
        if (read(owned[at][0], got, sizeof got) != 1) bad("read: %s", strerror(errno));
    }
}

/* Locks, with others that wait for them. */
static void range(struct flock *lock, short type, off_t from) {
    *lock = (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = from, .l_len = 10};
}
static int is_locked(int by_whom, int kind, off_t from) {
    struct flock lock;
    range(&lock, F_WRLCK, from);
    must(fcntl(by_whom, kind, &lock) == 0, "F_GETLK");
    return lock.l_type != F_UNLCK;
}
static void locks_begin(void) {
    struct flock lock;
    must((file = open("/srv-locks", O_CREAT | O_RDWR, 0600)) >= 0 && (second = open("/srv-locks", O_RDWR)) >= 0, "open");
    must(flock(file, LOCK_EX) == 0, "flock");
    range(&lock, F_WRLCK, 0);
    must(fcntl(file, F_SETLK, &lock) == 0, "F_SETLK");
    range(&lock, F_WRLCK, 100);
    must(fcntl(file, F_OFD_SETLK, &lock) == 0, "F_OFD_SETLK");
    for (int kind = 0; kind < 3; kind++) {
        if ((child = fork()) != 0) continue;
        int own = open("/srv-locks", O_RDWR);
        range(&lock, F_WRLCK, kind == 1 ? 0 : 100);
        int done = kind == 0 ? flock(own, LOCK_EX) : fcntl(own, kind == 1 ? F_SETLKW : F_OFD_SETLKW, &lock);
        bad("a lock of kind %d was given away: %d %s", kind, done, strerror(errno));
        _exit(1);
    }
}
static void locks(void) {
    if (flock(second, LOCK_EX | LOCK_NB) == 0) bad("flock is gone");
    if (!is_locked(second, F_OFD_GETLK, 0)) bad("the process's lock is gone");
    if (!is_locked(second, F_OFD_GETLK, 100)) bad("the description's lock is gone");
    if (is_locked(second, F_OFD_GETLK, 200)) bad("a lock too many");
}

/* An offset and flags that processes have in common. */
static void shared_begin(void) {
    must((file = open("/srv-shared", O_CREAT | O_RDWR | O_APPEND | O_NOATIME | O_SYNC, 0600)) >= 0, "open");
    must(pipe(ends) == 0, "pipe");
    if ((child = fork()) == 0) {
        char go;
        while (read(ends[0], &go, 1) == 1)
            if (write(file, "0123456789", 10) != 10) bad("write: %s", strerror(errno));
        _exit(0);
    }
}
static void shared(void) {
    off_t before = lseek(file, 0, SEEK_CUR), after = before;
    put(ends[1], "g");
    for (int times = 0; times < 1000 && after == before; times++) {
        usleep(1000);
        after = lseek(file, 0, SEEK_CUR);
    }
    if (after != before + 10) bad("the offset went from %ld to %ld", (long)before, (long)after);
    int flags = fcntl(file, F_GETFL);
    if ((flags & (O_APPEND | O_NOATIME | O_SYNC)) != (O_APPEND | O_NOATIME | O_SYNC)) bad("flags %#o", flags);
}

/* A file without a name, which could be given one. */
static void temporary_begin(void) {
    must((second = open("/", O_TMPFILE | O_RDWR, 0600)) >= 0, "O_TMPFILE");
    must(write(second, "temporary", 9) == 9, "write");
}
static void temporary(void) {
    char got[16] = "";
    if (pread(second, got, sizeof got, 0) != 9 || strcmp(got, "temporary")) bad("the temporary file has `%s`", got);
}

static const struct state states[] = {
    {"size", size_begin, size}, {"named", named_begin, named}, {"lent", lent_begin, lent},
    {"ended", ended_begin, ended}, {"packets", packets_begin, nothing}, {"owners", owners_begin, owners},
    {"locks", locks_begin, locks}, {"shared", shared_begin, shared}, {"temporary", temporary_begin, temporary},
};

int main(int count, char **names) {
    (void)count;
    be(states, sizeof states / sizeof *states, names);
}
