// Does with its memory all that a program can, at random, and knows what each page should hold. Writes a line
// to the file that it is told when a page holds something else, or a wait ends with EINTR.
//
//   torture SEED FILE
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define MAPS 48
#define PAGES_MAX 64
#define CHILDREN_MAX 2
#define DEPTH_MAX 2
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

enum { CLOSED = 1, GUARDED = 2 };
struct map { char *at; unsigned pages; int wiped; uint64_t value[PAGES_MAX]; char state[PAGES_MAX]; };
static struct map maps[MAPS];
static uint64_t seed;
static const char *damage_file;
static int depth, children;
static char *self;

static uint64_t number(uint64_t below) {
  seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17;
  return seed % below;
}
static void damaged(const char *what, void *at, uint64_t is, uint64_t wanted) {
  char line[200];
  int len = snprintf(line, sizeof line, "%d: %s at %p: %lx instead of %lx\n", getpid(), what, at, is, wanted);
  int fd = open(damage_file, O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (write(fd, line, len) != len) _exit(99);
  close(fd);
}
// Twice in the page, so that one half alone is noticed.
static void put(struct map *m, unsigned page, uint64_t value) {
  uint64_t *words = (uint64_t *)(m->at + page * PAGE);
  words[3] = words[500] = value;
  m->value[page] = value;
}
static void check(struct map *m) {
  for (unsigned page = 0; page < m->pages; page++) {
    if (m->state[page]) continue;
    uint64_t *words = (uint64_t *)(m->at + page * PAGE);
    if (words[3] != m->value[page]) damaged("page", words, words[3], m->value[page]);
    if (words[500] != m->value[page]) damaged("page's end", words, words[500], m->value[page]);
  }
}
static void open_all(struct map *m) {
  mprotect(m->at, m->pages * PAGE, PROT_READ | PROT_WRITE);
  madvise(m->at, m->pages * PAGE, MADV_GUARD_REMOVE);
  for (unsigned page = 0; page < m->pages; page++) {
    if (m->state[page] & GUARDED) m->value[page] = 0;
    m->state[page] = 0;
  }
}
static void map(struct map *m) {
  if (m->at) return;
  m->pages = 1 + number(number(4) ? 12 : PAGES_MAX);
  // Now and then right behind another one.
  struct map *near = &maps[number(MAPS)];
  char *hint = near->at && number(2) ? near->at + near->pages * PAGE : NULL;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | (hint ? MAP_FIXED_NOREPLACE : 0);
  char *at = mmap(hint, m->pages * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (at == MAP_FAILED) return;
  m->at = at; m->wiped = 0;
  memset(m->value, 0, sizeof m->value); memset(m->state, 0, sizeof m->state);
  for (unsigned page = 0; page < m->pages; page++) if (number(2)) put(m, page, number(-1ULL));
}
static void unmap(struct map *m) { munmap(m->at, m->pages * PAGE); m->at = NULL; }
static void drop(struct map *m) {
  unsigned from = number(m->pages), count = 1 + number(m->pages - from);
  for (unsigned page = from; page < from + count; page++) if (m->state[page]) return;
  madvise(m->at + from * PAGE, count * PAGE, MADV_DONTNEED);
  memset(m->value + from, 0, count * sizeof *m->value);
}
// In place of what was there.
static void replace(struct map *m) {
  open_all(m);
  mmap(m->at, m->pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  memset(m->value, 0, sizeof m->value);
  m->wiped = 0;
  if (number(2)) put(m, number(m->pages), number(-1ULL));
}
static void move(struct map *m) {
  open_all(m);
  unsigned pages = 1 + number(PAGES_MAX);
  char *at, *to = NULL;
  // Since Linux 6.17 several mappings can move at once, to the same length; but not tracked ones, and where one is
  // not and the next is, the call fails in the middle.
  if (number(2) || pages == m->pages) at = mremap(m->at, m->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
  else {
    to = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    at = mremap(m->at, m->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
  }
  if (at == MAP_FAILED) {
    if (to) munmap(to, pages * PAGE);
    // Before Linux 6.17 a call that fails has unmapped already what is beyond the new length.
    if (to && pages < m->pages) { munmap(m->at + pages * PAGE, (m->pages - pages) * PAGE); m->pages = pages; }
    return;
  }
  for (unsigned page = m->pages; page < pages; page++) m->value[page] = 0;
  m->at = at; m->pages = pages;
}
static void close_page(struct map *m, int how) {
  unsigned page = number(m->pages);
  if (m->state[page]) return;
  int failed = how == GUARDED ? madvise(m->at + page * PAGE, PAGE, MADV_GUARD_INSTALL)
                              : mprotect(m->at + page * PAGE, PAGE, PROT_NONE);
  if (!failed) m->state[page] = how;
}
// By the kernel, not by us.
static void let_read(struct map *m) {
  unsigned page = number(m->pages);
  if (m->state[page]) return;
  int fd = open("/dev/zero", O_RDONLY);
  uint64_t *words = (uint64_t *)(m->at + page * PAGE);
  if (read(fd, words, PAGE) == (ssize_t)PAGE) m->value[page] = 0;
  close(fd);
  if (number(2)) put(m, page, number(-1ULL));
}
static int deep(int levels) {
  volatile char here[1500];
  memset((char *)here, levels, sizeof here);
  return levels ? deep(levels - 1) + here[7] : here[9];
}
static void wait_a_moment(void) {
  struct timespec moment = {0, 1000 * number(300)};
  int failed = 0;
  switch (number(3)) {
    case 0: failed = nanosleep(&moment, NULL); break;
    case 1: failed = poll(NULL, 0, 1) < 0; break;
    case 2: { struct epoll_event event; int fd = epoll_create1(0); failed = epoll_wait(fd, &event, 1, 1) < 0; close(fd); }
  }
  if (failed) damaged(strerror(errno), 0, 0, 0);
}
static void *other(void *at) {
  volatile uint64_t *words = at;
  for (uint64_t i = 0; i < 20000; i++) words[7] = i;
  return NULL;
}
static void thread(struct map *m) {
  unsigned page = number(m->pages);
  if (m->state[page]) return;
  pthread_t id;
  pthread_create(&id, NULL, other, m->at + page * PAGE);
  for (int i = 0; i < 30; i++) put(m, page, number(-1ULL));
  pthread_join(id, NULL);
}
static void branch(void) {
  while (children && waitpid(-1, NULL, WNOHANG) > 0) children--;
  if (children >= CHILDREN_MAX || depth >= DEPTH_MAX) return;
  uint64_t of_child = number(-1ULL) | 1;
  pid_t child = fork();
  if (child) { children += child > 0; return; }
  seed = of_child; depth++; children = 0;
  for (int i = 0; i < MAPS; i++) if (maps[i].wiped) {
    memset(maps[i].value, 0, sizeof maps[i].value);
  }
}
static void begin_anew(void) {
  char text[3][32];
  snprintf(text[0], 32, "%lu", number(-1ULL) | 1); snprintf(text[1], 32, "%d", depth); snprintf(text[2], 32, "%d", children);
  execl(self, self, text[0], damage_file, text[1], text[2], NULL);
}
static void step(void) {
  struct map *m = &maps[number(MAPS)];
  if (!m->at) { map(m); return; }
  check(m);
  switch (number(40)) {
    case 0: unmap(m); break;
    case 1: case 2: drop(m); break;
    case 3: replace(m); break;
    case 4: case 5: move(m); break;
    case 6: close_page(m, CLOSED); break;
    case 7: close_page(m, GUARDED); break;
    case 8: open_all(m); break;
    case 9: let_read(m); break;
    case 10: deep(number(80)); break;
    case 11: case 12: wait_a_moment(); break;
    case 13: if (!number(4)) thread(m); break;
    case 14: if (!number(6)) branch(); break;
    case 15: if (!number(60)) begin_anew(); break;
    case 16: if (depth && !number(200)) _exit(0); break;
    case 17: if (!number(4)) free(malloc(number(200000))); break;
    case 18: if (!m->wiped && !number(4)) m->wiped = !madvise(m->at, m->pages * PAGE, MADV_WIPEONFORK); break;
    default: { unsigned page = number(m->pages); if (!m->state[page]) put(m, page, number(-1ULL)); }
  }
}
int main(int argc, char **argv) {
  self = argv[0];
  if (argc < 3) return 2;
  seed = strtoull(argv[1], NULL, 10) | 1;
  damage_file = argv[2];
  depth = argc > 3 ? atoi(argv[3]) : 0;
  children = argc > 4 ? atoi(argv[4]) : 0;
  for (;;) step();
}
