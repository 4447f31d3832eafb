/* changing MIB: memory that is forked, moved and given back all the time, also while its pages are
 * still on their way after a move. Each page begins with its own number; in every round all of them are
 * compared, by this process and by a child that was forked before. */
#include "specimen.h"

#define WORDS (PAGE / sizeof(uint64_t))

/* Pages that are moved to another address at a time. */
#define MOVED 64UL

/* Changes in a round; a round takes no longer than a fraction of a second with them. */
#define CHANGES 16

static char *memory, *spare;
static size_t pages;
static uint64_t seed = 88172645463325252UL;

/* xorshift64: the same sequence in every run. */
static uint64_t chance(uint64_t below) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % below;
}

static void compare(const char *who) {
    for (size_t page = 0; page < pages; page++) {
        uint64_t *words = (uint64_t *)(memory + page * PAGE);
        if (words[0] == page + 1 && words[WORDS - 1] == ~page) continue;
        bad("%s: page %zu is %lx, %lx", who, page, words[0], words[WORDS - 1]);
        return;
    }
}

/* Moves some pages away and back again: they may not have arrived yet. */
static void displace(char *piece) {
    size_t size = MOVED * PAGE;
    void *away = mremap(piece, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, spare);
    if (away == MAP_FAILED) bad("mremap: %s", strerror(errno));
    void *back = mremap(spare, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, piece);
    if (back == MAP_FAILED) bad("mremap: %s", strerror(errno));
}

/* Gives some pages back, which are zeros then, and fills them anew. */
static void give_back(size_t first) {
    char *piece = memory + first * PAGE;
    if (madvise(piece, MOVED * PAGE, MADV_DONTNEED)) bad("madvise: %s", strerror(errno));
    for (size_t page = first; page < first + MOVED; page++) {
        uint64_t *words = (uint64_t *)(memory + page * PAGE);
        if (words[0] || words[WORDS - 1]) bad("page %zu was given back and is not zero", page);
        words[0] = page + 1;
        words[WORDS - 1] = ~page;
    }
}

static void fork_and_compare(void) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        compare("a child");
        _exit(0);
    }
    for (int change = 0; change < CHANGES; change++) {
        size_t first = chance(pages / MOVED) * MOVED;
        if (chance(2)) displace(memory + first * PAGE);
        else give_back(first);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        bad("the child ended with status %x", status);
}

static void check(void) {
    fork_and_compare();
    compare("the parent");
}

int main(int count, char **arguments) {
    begin();
    must(count == 2, "an argument");
    pages = strtoul(arguments[1], NULL, 10) << 8;
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    spare = mmap(NULL, MOVED * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED && spare != MAP_FAILED, "mmap");
    for (size_t page = 0; page < pages; page++) {
        uint64_t *words = (uint64_t *)(memory + page * PAGE);
        words[0] = page + 1;
        words[WORDS - 1] = ~page;
    }
    rounds(check);
}
