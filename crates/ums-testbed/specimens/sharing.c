/* sharing KIND MIB: an object of memory that several processes have mapped and write to all the time, each page
 * by one of them at a time. What every page should hold is known to all, and compared by all.
 * Kinds: anonymous, segment (System V), memfd (some of its pages written by write(2) alone), shm (a file
 * in /dev/shm). */
#include "specimen.h"
#include <stdatomic.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/wait.h>

#define WRITERS 3
#define WORDS (PAGE / sizeof(uint64_t))
/* Pages that a writer changes between two looks, and the pause after it, microseconds. */
#define CHANGES 8
#define PAUSE_US 10000
/* Every so many pages one is never written: it is not there. */
#define HOLE 7

/* In memory that is shared too: the number of times that each page was written, odd while it is. */
struct table {
    atomic_ulong turns[1];
};

static struct table *table;
static char *object;
static size_t pages;
static int memfd = -1;

static uint64_t word(size_t page, uint64_t turn, size_t index) {
    /* splitmix64: nothing that a compressor could use. */
    uint64_t mixed = (page << 40) + turn * WORDS + index + 1;
    mixed = (mixed * 0x9E3779B97F4A7C15UL ^ mixed >> 30) * 0xBF58476D1CE4E5B9UL;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBUL;
    return mixed ^ mixed >> 31;
}

static char *page_at(size_t page) { return object + page * PAGE; }

static void write_page(size_t page) {
    uint64_t words[WORDS], turn = atomic_load(&table->turns[page]) + 2;
    for (size_t index = 0; index < WORDS; index++) words[index] = word(page, turn, index);
    atomic_store(&table->turns[page], turn - 1);
    if (memfd >= 0 && page % 2 == 0)
        must(pwrite(memfd, words, PAGE, (off_t)(page * PAGE)) == PAGE, "pwrite");
    else
        memcpy(page_at(page), words, PAGE);
    atomic_store(&table->turns[page], turn);
}

/* Compares a page, unless somebody is writing to it. */
static int is_right(size_t page) {
    uint64_t turn = atomic_load(&table->turns[page]), words[WORDS];
    if (turn % 2) return 1;
    memcpy(words, page_at(page), PAGE);
    if (atomic_load(&table->turns[page]) != turn) return 1;
    for (size_t index = 0; index < WORDS; index++)
        if (words[index] != (turn ? word(page, turn, index) : 0)) {
            bad("page %zu, turn %lu: word %zu is %lx", page, turn, index, words[index]);
            return 0;
        }
    return 1;
}

static int is_written(size_t page) { return page % HOLE != 0; }

/* Writes to pages of its own here and there for ever. */
__attribute__((noreturn)) static void writer(size_t which) {
    uint64_t seed = which + 1;
    for (;;) {
        for (int change = 0; change < CHANGES; change++) {
            seed = seed * 6364136223846793005UL + 1442695040888963407UL;
            /* Most of it stays as it is. */
            size_t page = (seed >> 33) % (pages / 8 + 1);
            page = page * WRITERS + which;
            if (page < pages && is_written(page)) write_page(page);
        }
        usleep(PAUSE_US);
    }
}

static char *map(size_t bytes, int fd) {
    int flags = MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0);
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    must(at != MAP_FAILED, "mmap");
    return at;
}

static void make(const char *kind, size_t bytes) {
    if (strcmp(kind, "anonymous") == 0) {
        object = map(bytes, -1);
    } else if (strcmp(kind, "segment") == 0) {
        int id = shmget(IPC_PRIVATE, bytes, IPC_CREAT | 0600);
        object = shmat(id, NULL, 0);
        must(object != (void *)-1, "shmat");
        must(shmctl(id, IPC_RMID, NULL) == 0, "IPC_RMID");
    } else {
        int is_memfd = strcmp(kind, "memfd") == 0;
        int fd = is_memfd ? memfd_create("sharing", 0) : open("/dev/shm/sharing", O_CREAT | O_RDWR, 0600);
        must(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0, kind);
        object = map(bytes, fd);
        if (is_memfd) memfd = fd;
    }
}

static void check(void) {
    for (size_t page = 0; page < pages; page++)
        if (!is_right(page)) return;
    if (waitpid(-1, NULL, WNOHANG) != 0) bad("a writer has ended");
}

int main(int count, char **arguments) {
    begin();
    must(count == 3, "two arguments");
    size_t bytes = strtoul(arguments[2], NULL, 10) << 20;
    pages = bytes / PAGE;
    table = (struct table *)map(pages * sizeof table->turns[0], -1);
    make(arguments[1], bytes);
    for (size_t page = 0; page < pages; page++)
        if (is_written(page)) write_page(page);
    for (size_t which = 0; which < WRITERS; which++) {
        pid_t pid = fork();
        must(pid >= 0, "fork");
        if (pid == 0) writer(which);
    }
    rounds(check);
}
