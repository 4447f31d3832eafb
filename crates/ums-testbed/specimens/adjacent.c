/* adjacent KIND PIECES PAGES: anonymous mappings that touch each other, every second one of them
 * different from its neighbours in what KIND says. Each word of each page has a value of its own. */
#include "specimen.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

#define WORDS (PAGE / sizeof(uint64_t))

static const struct kind {
    const char *name;
    int protection; /* what mprotect(2) gives the piece, or -1 */
    int advice;     /* what madvise(2) is told of it, or -1 */
} kinds[] = {
    {"same", -1, -1},
    {"read-only", PROT_READ, -1},
    {"read-execute", PROT_READ | PROT_EXEC, -1},
    {"read-write-execute", PROT_READ | PROT_WRITE | PROT_EXEC, -1},
    {"no-access", PROT_NONE, -1},
    {"dontfork", -1, MADV_DONTFORK},
    {"dontdump", -1, MADV_DONTDUMP},
    {"wipeonfork", -1, MADV_WIPEONFORK},
    {"nohugepage", -1, MADV_NOHUGEPAGE},
    {"hugepage", -1, MADV_HUGEPAGE},
    {"locked", -1, -1},
};

static const struct kind *kind;
static uint64_t *memory;
static size_t pieces, pages;

static uint64_t *page_at(size_t page) { return memory + page * WORDS; }

static uint64_t word(size_t page, size_t index) {
    return (page * WORDS + index + 1) * 0x9E3779B97F4A7C15UL;
}

static int is(const char *name) { return strcmp(kind->name, name) == 0; }

static void protect(size_t piece, int protection) {
    int done = mprotect(page_at(piece * pages), pages * PAGE, protection);
    must(done == 0, "mprotect");
}

static void check_piece(size_t piece) {
    int unreadable = piece % 2 == 0 && is("no-access");
    if (unreadable) protect(piece, PROT_READ);
    for (size_t page = piece * pages; page < (piece + 1) * pages; page++)
        for (size_t index = 0; index < WORDS; index++) {
            uint64_t found = page_at(page)[index];
            if (found == word(page, index)) continue;
            bad("piece %zu, page %zu, word %zu is %lx", piece, page, index, found);
            break;
        }
    if (unreadable) protect(piece, PROT_NONE);
}

static void check(void) {
    for (size_t piece = 0; piece < pieces; piece++) check_piece(piece);
}

/* Makes a piece different from its neighbours. */
static void distinguish(size_t piece) {
    uint64_t *start = page_at(piece * pages);
    if (kind->protection >= 0) protect(piece, kind->protection);
    if (kind->advice >= 0)
        must(madvise(start, pages * PAGE, kind->advice) == 0 || errno == EINVAL, "madvise");
    if (is("locked")) must(mlock(start, pages * PAGE) == 0, "mlock");
}

int main(int count, char **arguments) {
    begin();
    must(count == 4, "three arguments");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, arguments[1]) == 0) kind = &kinds[i];
    must(kind != NULL, "the kind");
    pieces = strtoul(arguments[2], NULL, 10);
    pages = strtoul(arguments[3], NULL, 10);
    /* Pages around it that can't be touched keep the C library's own mappings away. */
    size_t size = (pieces * pages + 2) * PAGE;
    char *around = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(around != MAP_FAILED, "mmap");
    memory = (uint64_t *)(around + PAGE);
    must(mprotect(memory, size - 2 * PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
    for (size_t page = 0; page < pieces * pages; page++)
        for (size_t index = 0; index < WORDS; index++) page_at(page)[index] = word(page, index);
    for (size_t piece = 0; piece < pieces; piece += 2) distinguish(piece);
    rounds(check);
}
