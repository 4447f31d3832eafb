/* torture [SEED]: threads that change their memory at random, each in an arena of its own whose slots
 * touch each other and are mappings of every kind. What each page should hold is known, and compared all
 * the time: by its thread, and by children that were forked in the middle. A thread's stack is compared
 * too. A round is over when every thread has compared everything once more. */
#include "specimen.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/random.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#define MADV_KEEPONFORK 19
#endif

#define WORDS (PAGE / sizeof(uint64_t))
#define ARENAS 3
#define SLOTS 48
#define PAGES 16UL
#define SIZE (PAGES * PAGE)
#define READABLE (PROT_READ | PROT_WRITE)

/* Changes between two comparisons. */
#define CHANGES 24

/* Bytes that a thread keeps on its stack, and the pause between what it does, microseconds. */
#define KEPT 16384
#define PAUSE_US 3000

/* A page's content is made from its tag; one that was never written is what its mapping begins with. */
enum kind { PRIVATE, SHARED, FILED };

struct slot {
    enum kind kind;
    int protection, locked, unforked, wiped;
    uint64_t tags[PAGES]; /* 0: never written */
    int freed[PAGES];     /* may also be what the mapping begins with */
};

struct arena {
    char *memory;
    uint64_t seed, tag;
    struct slot slots[SLOTS];
    pid_t child;
    pthread_t helper;
    int helped;
    atomic_ulong rounds;
};

static struct arena arenas[ARENAS];
static uint64_t seed;
static int file;

/* Held where an address is free for a moment, and where the C library looks for free ones. */
static pthread_mutex_t holes = PTHREAD_MUTEX_INITIALIZER;

/* xorshift64. */
static uint64_t chance(struct arena *arena, uint64_t below) {
    arena->seed ^= arena->seed << 13;
    arena->seed ^= arena->seed >> 7;
    arena->seed ^= arena->seed << 17;
    return arena->seed % below;
}

static uint64_t word(uint64_t tag, size_t index) {
    return tag ? (tag + index) * 0x9E3779B97F4A7C15UL : 0;
}

/* What a page of a mapping holds that nobody has written to. */
static uint64_t fresh(const struct slot *slot, size_t page) {
    return slot->kind == FILED ? page + 1 : 0;
}

static char *address(struct arena *arena, const struct slot *slot) {
    return arena->memory + (slot - arena->slots) * SIZE;
}

static void done(int right, const char *what) {
    if (!right) bad("seed %lu: %s: %s", seed, what, strerror(errno));
}

static void protect(struct arena *arena, struct slot *slot, int protection) {
    done(mprotect(address(arena, slot), SIZE, protection) == 0, "mprotect");
}

static int holds(const uint64_t *words, uint64_t tag) {
    for (size_t index = 0; index < WORDS; index++)
        if (words[index] != word(tag, index)) return 0;
    return 1;
}

static int compare(struct arena *arena, struct slot *slot, int wiped, const char *who) {
    int hidden = !(slot->protection & PROT_READ), right = 1;
    if (hidden) protect(arena, slot, PROT_READ);
    for (size_t page = 0; page < PAGES && right; page++) {
        const uint64_t *words = (uint64_t *)(address(arena, slot) + page * PAGE);
        uint64_t first = fresh(slot, page), tag = slot->tags[page] ? slot->tags[page] : first;
        if (wiped) tag = first;
        right = holds(words, tag) || (slot->freed[page] && holds(words, first));
        if (!right)
            bad("seed %lu, %s: arena %zu, slot %zu (kind %d, protection %d), page %zu begins with %lx, not %lx",
                seed, who, (size_t)(arena - arenas), (size_t)(slot - arena->slots), slot->kind,
                slot->protection, page, words[0], word(tag, 0));
    }
    if (hidden) protect(arena, slot, slot->protection);
    return right;
}

static void map(struct arena *arena, struct slot *slot) {
    enum kind kind = chance(arena, 6) ? PRIVATE : chance(arena, 2) ? SHARED : FILED;
    int flags = MAP_FIXED | (kind == SHARED ? MAP_SHARED : MAP_PRIVATE);
    if (kind != FILED) flags |= MAP_ANONYMOUS;
    void *at = mmap(address(arena, slot), SIZE, READABLE, flags, kind == FILED ? file : -1, 0);
    done(at != MAP_FAILED, "mmap");
    *slot = (struct slot){.kind = kind, .protection = READABLE};
}

static void write_pages(struct arena *arena, struct slot *slot) {
    if (!(slot->protection & PROT_WRITE)) return;
    size_t end = chance(arena, PAGES) + 1;
    for (size_t page = chance(arena, end); page < end; page++) {
        uint64_t *words = (uint64_t *)(address(arena, slot) + page * PAGE);
        uint64_t tag = arena->tag += WORDS;
        for (size_t index = 0; index < WORDS; index++) words[index] = word(tag, index);
        slot->tags[page] = tag;
        slot->freed[page] = 0;
    }
}

/* MADV_DONTNEED, or MADV_FREE, of some pages. */
static void give_back(struct arena *arena, struct slot *slot, int lazily) {
    if (slot->locked || slot->kind == SHARED || (lazily && slot->kind != PRIVATE)) return;
    size_t end = chance(arena, PAGES) + 1, first = chance(arena, end);
    char *at = address(arena, slot) + first * PAGE;
    int advice = lazily ? MADV_FREE : MADV_DONTNEED;
    done(madvise(at, (end - first) * PAGE, advice) == 0, "madvise of what is given back");
    for (size_t page = first; page < end; page++) {
        slot->freed[page] = lazily;
        if (!lazily) slot->tags[page] = 0;
    }
}

static void advise(struct arena *arena, struct slot *slot) {
    static const int advices[] = {MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP,
                                  MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK, MADV_KEEPONFORK};
    int advice = advices[chance(arena, sizeof advices / sizeof *advices)];
    /* Not every kernel has huge pages, and only anonymous memory can be wiped. */
    if (madvise(address(arena, slot), SIZE, advice) != 0) return;
    if (advice == MADV_DONTFORK || advice == MADV_DOFORK) slot->unforked = advice == MADV_DONTFORK;
    if (advice == MADV_WIPEONFORK || advice == MADV_KEEPONFORK)
        slot->wiped = advice == MADV_WIPEONFORK;
}

/* To another slot's place; its own is mapped anew. */
static void displace(struct arena *arena, struct slot *slot) {
    struct slot *other = &arena->slots[chance(arena, SLOTS)];
    if (other == slot) return;
    pthread_mutex_lock(&holes);
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    void *at = mremap(address(arena, slot), SIZE, SIZE, flags, address(arena, other));
    done(at != MAP_FAILED, "mremap");
    *other = *slot;
    map(arena, slot);
    pthread_mutex_unlock(&holes);
}

static void lock(struct arena *arena, struct slot *slot) {
    if (slot->locked) done(munlock(address(arena, slot), SIZE) == 0, "munlock");
    /* As far as the limit goes. */
    slot->locked = !slot->locked && slot->protection && mlock(address(arena, slot), SIZE) == 0;
}

static void change(struct arena *arena) {
    static const int protections[] = {PROT_NONE, PROT_READ, READABLE, READABLE, PROT_READ | PROT_EXEC};
    struct slot *slot = &arena->slots[chance(arena, SLOTS)];
    switch (chance(arena, 10)) {
    case 0: map(arena, slot); break;
    case 1: give_back(arena, slot, 0); break;
    case 2: give_back(arena, slot, 1); break;
    case 3: advise(arena, slot); break;
    case 4: displace(arena, slot); break;
    case 5: lock(arena, slot); break;
    case 6:
        slot->protection = protections[chance(arena, 5)];
        protect(arena, slot, slot->protection);
        break;
    default: write_pages(arena, slot);
    }
}

/* Compares twice what it has inherited, and changes its own copy in between. */
static void be_a_child(struct arena *arena) {
    int right = 1;
    for (int turn = 0; turn < 2; turn++) {
        for (struct slot *slot = arena->slots; slot < arena->slots + SLOTS; slot++) {
            if (slot->unforked || slot->kind == SHARED) continue;
            right &= compare(arena, slot, slot->wiped, "a child");
            if (!slot->wiped) write_pages(arena, slot);
        }
        usleep(chance(arena, 300000));
    }
    _exit(!right);
}

static void have_a_child(struct arena *arena) {
    int status = 0;
    if (arena->child > 0) {
        pid_t ended = waitpid(arena->child, &status, WNOHANG);
        if (ended == 0) return;
        if (ended != arena->child || status != 0)
            bad("seed %lu: a child ended with status %x", seed, status);
    }
    pthread_mutex_lock(&holes);
    arena->child = fork();
    if (arena->child == 0) be_a_child(arena);
    pthread_mutex_unlock(&holes);
    done(arena->child > 0, "fork");
}

/* A thread that compares its own stack. */
static void *help(void *unused) {
    (void)unused;
    volatile char kept[KEPT];
    for (size_t at = 0; at < KEPT; at++) kept[at] = (char)(at * 31);
    usleep(100000);
    for (size_t at = 0; at < KEPT; at++) {
        if (kept[at] == (char)(at * 31)) continue;
        bad("seed %lu: byte %zu of a stack is %x", seed, at, kept[at]);
        break;
    }
    return NULL;
}

static void have_help(struct arena *arena) {
    if (arena->helped) done(pthread_join(arena->helper, NULL) == 0, "pthread_join");
    pthread_mutex_lock(&holes);
    arena->helped = pthread_create(&arena->helper, NULL, help, NULL) == 0;
    pthread_mutex_unlock(&holes);
    done(arena->helped, "pthread_create");
}

__attribute__((noreturn)) static void *live(void *own) {
    struct arena *arena = own;
    for (;;) {
        for (int turn = 0; turn < CHANGES; turn++) change(arena);
        for (struct slot *slot = arena->slots; slot < arena->slots + SLOTS; slot++)
            compare(arena, slot, 0, "its thread");
        if (chance(arena, 4) == 0) have_a_child(arena);
        if (chance(arena, 16) == 0) have_help(arena);
        arena->rounds++;
        usleep(PAUSE_US);
    }
}

static void check(void) {
    for (struct arena *arena = arenas; arena < arenas + ARENAS; arena++) {
        unsigned long before = arena->rounds;
        while (arena->rounds < before + 2) usleep(PAUSE_US);
    }
}

static void make(struct arena *arena) {
    /* Pages around it that can't be touched keep the C library's own mappings away. */
    char *around = mmap(NULL, SLOTS * SIZE + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(around != MAP_FAILED, "mmap");
    arena->memory = around + PAGE;
    arena->seed = seed + (uint64_t)(arena - arenas) * 7919 + 1;
    for (struct slot *slot = arena->slots; slot < arena->slots + SLOTS; slot++) map(arena, slot);
}

int main(int count, char **arguments) {
    pthread_t thread;
    begin();
    must(getrandom(&seed, sizeof seed, 0) == sizeof seed, "getrandom");
    if (count > 1) seed = strtoul(arguments[1], NULL, 10);
    file = open("/torture.data", O_CREAT | O_RDWR | O_TRUNC, 0644);
    must(file >= 0, "open");
    for (size_t at = 0; at < PAGES * WORDS; at++) {
        uint64_t value = word(at / WORDS + 1, at % WORDS);
        must(write(file, &value, sizeof value) == sizeof value, "write");
    }
    for (int arena = 0; arena < ARENAS; arena++) make(&arenas[arena]);
    for (int arena = 0; arena < ARENAS; arena++)
        must(pthread_create(&thread, NULL, live, &arenas[arena]) == 0, "pthread_create");
    rounds(check);
}
