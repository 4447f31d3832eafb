/* memory: mappings and objects of memory that are not plain. Arguments: the states, by name. */
#include "specimen.h"
#include <linux/aio_abi.h>
#include <linux/memfd.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x8U
#define MFD_EXEC 0x10U
#endif
#define SEAL_EXEC 0x20
#define DROPPABLE 0x8
#define GUARD_INSTALL 102
#define SYS_MSEAL 462
#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif
#define PAGES 8UL

static void check_nothing(void) {}

/* What a page of an object holds. */
static void fill(char *pages, size_t count, char seed) {
    for (size_t page = 0; page < count; page++) memset(pages + page * PAGE, seed + (char)page, PAGE);
}

static void holds(const char *what, const char *pages, size_t count, char seed) {
    for (size_t page = 0; page < count; page++)
        for (size_t at = 0; at < PAGE; at += 512)
            if (pages[page * PAGE + at] != (char)(seed + (char)page)) {
                bad("%s: page %zu holds %d", what, page, pages[page * PAGE + at]);
                return;
            }
}

/* A line of smaps that begins so, of the mapping at an address. */
static char *line_of(const void *address, const char *begin) {
    static char line[4096];
    unsigned long from, to;
    int here = 0;
    FILE *file = fopen("/proc/self/smaps", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2) here = from <= (unsigned long)address && (unsigned long)address < to;
        if (here && strncmp(line, begin, strlen(begin)) == 0) {
            fclose(file);
            return line;
        }
    }
    if (file != NULL) fclose(file);
    line[0] = 0;
    return line;
}

static void has_flag(const char *what, const void *address, const char *flag) {
    char *flags = line_of(address, "VmFlags:");
    if (strstr(flags, flag) == NULL) bad("%s: no flag '%s' in %s", what, flag, flags);
}

/* What an older kernel does not know is not looked at. */
static int unknown(void) { return errno == EINVAL || errno == ENOSYS; }

static char *map(size_t pages, int protection, int flags, int fd) {
    char *at = mmap(NULL, pages * PAGE, protection, flags, fd, 0);
    must(at != MAP_FAILED, "mmap");
    return at;
}

static int memory_file(const char *name, unsigned flags, char seed) {
    int fd = (int)syscall(SYS_memfd_create, name, flags);
    must(fd >= 0, "memfd_create");
    must(ftruncate(fd, PAGES * PAGE) == 0, "ftruncate");
    char *at = map(PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    fill(at, PAGES, seed);
    munmap(at, PAGES * PAGE);
    return fd;
}

static void sealed_with(const char *what, int fd, int seals) {
    int now = fcntl(fd, F_GET_SEALS);
    if (now != seals) bad("%s: the seals are %x, not %x", what, now, seals);
}

/* Sealed against everything; a private mapping of it has a page of its own. */
#define ALL_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)
static int sealed;
static char *sealed_private;
static void make_sealed(void) {
    sealed = memory_file("sealed", MFD_ALLOW_SEALING, 1);
    must(fcntl(sealed, F_ADD_SEALS, ALL_SEALS) == 0, "F_ADD_SEALS");
    sealed_private = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE, sealed);
    fill(sealed_private, 1, 77);
}
static void check_sealed(void) {
    sealed_with("sealed", sealed, ALL_SEALS);
    holds("sealed, own page", sealed_private, 1, 77);
    holds("sealed, private", sealed_private + PAGE, PAGES - 1, 2);
    if (write(sealed, "x", 1) >= 0) bad("the sealed file is written to");
}

/* The same, mapped shared. */
static char *sealed_shared;
static void make_sealed_mapped(void) {
    make_sealed();
    sealed_shared = map(PAGES, PROT_READ, MAP_SHARED, sealed);
}
static void check_sealed_mapped(void) {
    check_sealed();
    holds("sealed, shared", sealed_shared, PAGES, 1);
}

/* A mapping that may be written to, of a file that is sealed against others. */
static int future;
static char *future_shared;
static void make_future(void) {
    future = memory_file("future", MFD_ALLOW_SEALING, 3);
    future_shared = map(PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, future);
    must(fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK) == 0, "F_ADD_SEALS");
}
static void check_future(void) {
    sealed_with("future", future, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK);
    holds("future", future_shared, PAGES, 3);
    future_shared[1]++;
    future_shared[1]--;
    if (mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, future, 0) != MAP_FAILED) bad("another writable mapping is made");
}

/* Not executable for ever. */
static int noexec, executable;
static void make_noexec(void) {
    int fd = (int)syscall(SYS_memfd_create, "known", MFD_EXEC);
    noexec = -1;
    if (fd < 0 && unknown()) return;
    close(fd);
    noexec = memory_file("noexec", MFD_NOEXEC_SEAL, 5);
    executable = memory_file("exec", MFD_EXEC | MFD_CLOEXEC, 6);
}
static void check_noexec(void) {
    struct stat file;
    if (noexec < 0) return;
    sealed_with("noexec", noexec, SEAL_EXEC);
    if (fstat(noexec, &file) == 0 && (file.st_mode & 0111) != 0) bad("noexec: mode %o", file.st_mode);
    sealed_with("exec", executable, F_SEAL_SEAL);
    if (fstat(executable, &file) == 0 && (file.st_mode & 0111) != 0111) bad("exec: mode %o", file.st_mode);
    if (fcntl(executable, F_GETFD) != FD_CLOEXEC) bad("exec: flags %x", fcntl(executable, F_GETFD));
}

/* Objects that are mapped and not open any more. */
static char *memfd_only, *memfd_copy, *zero_shared, *zero_private, *gone_shared, *gone_private;
static void make_closed(void) {
    int fd = memory_file("closed (deleted)", 0, 7);
    memfd_only = map(PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    memfd_copy = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
    close(fd);
    fd = open("/dev/zero", O_RDWR);
    must(fd >= 0, "/dev/zero");
    zero_shared = map(PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    zero_private = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
    fill(zero_shared, PAGES, 8);
    fill(zero_private, PAGES, 9);
    close(fd);
    fd = open("/mapped", O_CREAT | O_RDWR, 0600);
    must(fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0, "/mapped");
    gone_shared = map(PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    fill(gone_shared, PAGES, 10);
    gone_private = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
    fill(gone_private, 1, 11);
    close(fd);
    unlink("/mapped");
}
static void check_closed(void) {
    holds("memfd", memfd_only, PAGES, 7);
    holds("memfd, private", memfd_copy, PAGES, 7);
    memfd_only[PAGE] ^= 1;
    if (memfd_copy[PAGE] != memfd_only[PAGE]) bad("the two mappings of the memfd are of two files");
    memfd_only[PAGE] ^= 1;
    holds("/dev/zero", zero_shared, PAGES, 8);
    holds("/dev/zero, private", zero_private, PAGES, 9);
    holds("deleted file", gone_shared, PAGES, 10);
    holds("deleted file, own page", gone_private, 1, 11);
    holds("deleted file, private", gone_private + PAGE, PAGES - 1, 11);
    gone_shared[PAGE] ^= 1;
    if (gone_private[PAGE] != gone_shared[PAGE]) bad("the two mappings of the deleted file are of two files");
    gone_shared[PAGE] ^= 1;
}

/* A stack that grows by itself. */
static char *growing;
static void make_growing(void) {
    char *at = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    must(at != MAP_FAILED && munmap(at, PAGES * PAGE) == 0, "a free place");
    growing = mmap(at + (PAGES - 1) * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
    must(growing != MAP_FAILED, "MAP_GROWSDOWN");
    fill(growing, 1, 12);
}
static void check_growing(void) {
    holds("growing", growing, 1, 12);
    has_flag("growing", growing, "gd");
}

static char *droppable;
static void make_droppable(void) {
    droppable = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, DROPPABLE | MAP_ANONYMOUS, -1, 0);
    must(droppable != MAP_FAILED || unknown(), "MAP_DROPPABLE");
    if (droppable != MAP_FAILED) fill(droppable, PAGES, 13);
}
/* Each page holds what it did or nothing, which the kernel may do to it at any time. */
static void check_droppable(void) {
    if (droppable == MAP_FAILED) return;
    for (char page = 0; page < (char)PAGES; page++)
        if (droppable[page * (long)PAGE] != 0) holds("droppable", droppable + page * (long)PAGE, 1, 13 + page);
    has_flag("droppable", droppable, "dp");
}

/* Pages in the middle of a mapping that can't be touched. */
static char *guarded;
static void make_guarded(void) {
    guarded = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    fill(guarded, PAGES, 14);
    int done = madvise(guarded + 2 * PAGE, 2 * PAGE, GUARD_INSTALL) == 0;
    must(done || unknown(), "MADV_GUARD_INSTALL");
    if (!done) guarded = NULL;
}
static void check_guarded(void) {
    int ends[2];
    if (guarded == NULL) return;
    holds("guarded", guarded, 2, 14);
    holds("guarded, after", guarded + 4 * PAGE, PAGES - 4, 18);
    must(pipe(ends) == 0, "pipe");
    if (write(ends[1], guarded + 2 * PAGE, 1) >= 0) bad("a guarded page can be read");
    close(ends[0]);
    close(ends[1]);
}

static int key;
static char *keyed;
static void make_keyed(void) {
    key = (int)syscall(SYS_pkey_alloc, 0, 0);
    must(key > 0, "pkey_alloc");
    keyed = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    fill(keyed, PAGES, 15);
    must(syscall(SYS_pkey_mprotect, keyed, PAGES * PAGE, PROT_READ | PROT_WRITE, key) == 0, "pkey_mprotect");
}
static void check_keyed(void) {
    char wanted[64];
    snprintf(wanted, sizeof wanted, "ProtectionKey: %9d", key);
    char *line = line_of(keyed, "ProtectionKey:");
    int found = -1;
    if (sscanf(line, "ProtectionKey: %d", &found) != 1 || found != key) bad("keyed: key %d, not %d", found, key);
    int next = (int)syscall(SYS_pkey_alloc, 0, 0);
    if (next == key) bad("the key is given out again");
    if (next > 0) syscall(SYS_pkey_free, next);
    holds("keyed", keyed, PAGES, 15);
}

/* Locked, with a limit that allows for no more of it. */
static char *locked;
static void make_locked(void) {
    locked = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    fill(locked, PAGES, 16);
    must(mlock(locked, PAGES * PAGE) == 0, "mlock");
    struct rlimit none = {0, 0};
    must(setrlimit(RLIMIT_MEMLOCK, &none) == 0, "setrlimit");
}
static void check_locked(void) {
    holds("locked", locked, PAGES, 16);
    has_flag("locked", locked, "lo");
}
/* Locked as it is touched. */
static char *on_fault;
static void make_on_fault(void) {
    on_fault = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    must(syscall(SYS_mlock2, on_fault, PAGES * PAGE, 1) == 0, "mlock2");
    fill(on_fault, 1, 17);
}
static void check_on_fault(void) {
    holds("on fault", on_fault, 1, 17);
    has_flag("on fault", on_fault, "lo");
}
/* Locked because all that is mapped later is; on fault, or at once. */
static void later(const char *what, unsigned long resident) {
    unsigned char is[PAGES];
    unsigned long count = 0;
    char *at = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    must(mincore(at, PAGES * PAGE, is) == 0, "mincore");
    for (size_t page = 0; page < PAGES; page++) count += is[page] & 1;
    if (count != resident) bad("%s: %lu pages are there", what, count);
    has_flag(what, at, "lo");
    munmap(at, PAGES * PAGE);
}
static void make_future_locked(void) { must(mlockall(MCL_CURRENT | MCL_FUTURE) == 0, "mlockall"); }
static void check_future_locked(void) { later("locked in future", PAGES); }
static void make_future_on_fault(void) { must(mlockall(MCL_FUTURE | MCL_ONFAULT) == 0, "mlockall"); }
static void check_future_on_fault(void) { later("locked on fault in future", 0); }

/* Nobody may change the mapping any more. */
static char *forever;
static void make_forever(void) {
    forever = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    fill(forever, PAGES, 21);
    if (syscall(SYS_MSEAL, forever, PAGES * PAGE, 0) == 0) return;
    must(errno == ENOSYS, "mseal");
    forever = NULL;
}
static void check_forever(void) {
    if (forever == NULL) return;
    holds("sealed memory", forever, PAGES, 21);
    if (mprotect(forever, PAGE, PROT_READ) == 0 || errno != EPERM) bad("sealed memory can be protected otherwise");
    if (munmap(forever + PAGE, PAGE) == 0 || errno != EPERM) bad("sealed memory can be unmapped");
}
/* System V: a segment that is removed and attached, one that is neither, a queue. */
static char *removed, *attached;
static int segment, queue;
static void make_sysv(void) {
    int id = shmget(IPC_PRIVATE, PAGES * PAGE, IPC_CREAT | 0600);
    removed = shmat(id, NULL, 0);
    must(removed != (void *)-1, "shmat");
    fill(removed, PAGES, 18);
    must(shmctl(id, IPC_RMID, NULL) == 0, "IPC_RMID");
    segment = shmget(0x5eed, PAGES * PAGE, IPC_CREAT | 0640);
    attached = shmat(segment, NULL, SHM_RDONLY);
    char *once = shmat(segment, NULL, 0);
    fill(once, PAGES, 19);
    shmdt(once);
    queue = msgget(0x5eed, IPC_CREAT | 0600);
    struct { long kind; char text[8]; } message = {7, "message"};
    must(msgsnd(queue, &message, sizeof message.text, 0) == 0, "msgsnd");
}
static void check_sysv(void) {
    holds("removed segment", removed, PAGES, 18);
    holds("segment", attached, PAGES, 19);
    struct shmid_ds about;
    if (shmget(0x5eed, 1, 0) != segment || shmctl(segment, IPC_STAT, &about) != 0 || about.shm_nattch != 1 || (about.shm_perm.mode & 0777) != 0640)
        bad("segment %d: %s, attached %lu, mode %o", segment, strerror(errno), about.shm_nattch, about.shm_perm.mode);
    struct { long kind; char text[8]; } message;
    if (msgrcv(queue, &message, sizeof message.text, 7, IPC_NOWAIT) != sizeof message.text || strcmp(message.text, "message") != 0) bad("message: %s", strerror(errno));
    msgsnd(queue, &message, sizeof message.text, 0);
}

/* Segment that is there and that nobody has attached. */
static int loose;
static void make_loose(void) {
    loose = shmget(0x1005e, PAGES * PAGE, IPC_CREAT | 0600);
    char *once = shmat(loose, NULL, 0);
    fill(once, PAGES, 20);
    shmdt(once);
}
static void check_loose(void) {
    char *at = shmat(loose, NULL, 0);
    if (at == (void *)-1) {
        bad("loose segment: %s", strerror(errno));
        return;
    }
    holds("loose segment", at, PAGES, 20);
    shmdt(at);
}

/* An asynchronous read that has not ended: of an empty pipe, polled. */
static aio_context_t context;
static struct iocb request;
static int ends[2], read_from;
static void make_aio(void) { must(syscall(SYS_io_setup, 16, &context) == 0, "io_setup"); }
static void check_aio(void) {
    char data[16];
    read_from = open("/specimen.log", O_RDONLY);
    struct iocb one = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (unsigned)read_from, .aio_buf = (uintptr_t)data, .aio_nbytes = sizeof data};
    struct iocb *all[1] = {&one};
    struct io_event event;
    if (syscall(SYS_io_submit, context, 1, all) != 1) bad("io_submit: %s", strerror(errno));
    struct timespec soon = {2, 0};
    if (syscall(SYS_io_getevents, context, 1, 1, &event, &soon) != 1) bad("io_getevents: %s", strerror(errno));
    close(read_from);
}
static void make_aio_waiting(void) {
    make_aio();
    must(pipe(ends) == 0, "pipe");
    request = (struct iocb){.aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = (unsigned)ends[0], .aio_buf = 1};
    struct iocb *all[1] = {&request};
    must(syscall(SYS_io_submit, context, 1, all) == 1, "io_submit");
}
/* Whether it is told is not checked. */
static void check_aio_waiting(void) {
    struct io_event event;
    struct timespec soon = {0, 100000000};
    char byte;
    if (write(ends[1], "x", 1) != 1) bad("write");
    syscall(SYS_io_getevents, context, 1, 1, &event, &soon);
    if (read(ends[0], &byte, 1) != 1) bad("read");
    struct iocb *all[1] = {&request};
    if (syscall(SYS_io_submit, context, 1, all) != 1) bad("io_submit: %s", strerror(errno));
}

static int watcher;
static void make_userfault(void) {
    watcher = (int)syscall(SYS_userfaultfd, 1 | O_CLOEXEC);
    must(watcher >= 0, "userfaultfd");
}
static const struct state states[] = {
    {"sealed", make_sealed, check_sealed},
    {"sealed-mapped", make_sealed_mapped, check_sealed_mapped},
    {"future", make_future, check_future},
    {"noexec", make_noexec, check_noexec},
    {"closed", make_closed, check_closed},
    {"growing", make_growing, check_growing},
    {"droppable", make_droppable, check_droppable},
    {"guarded", make_guarded, check_guarded},
    {"keyed", make_keyed, check_keyed},
    {"locked", make_locked, check_locked},
    {"on-fault", make_on_fault, check_on_fault},
    {"future-locked", make_future_locked, check_future_locked},
    {"future-on-fault", make_future_on_fault, check_future_on_fault},
    {"forever", make_forever, check_forever},
    {"sysv", make_sysv, check_sysv},
    {"loose", make_loose, check_loose},
    {"aio", make_aio, check_aio},
    {"aio-waiting", make_aio_waiting, check_aio_waiting},
    {"userfault", make_userfault, check_nothing},
};

int main(int count, char **names) {
    (void)count;
    be(states, sizeof states / sizeof *states, names);
}
