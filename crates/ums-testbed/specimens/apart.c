/* apart places|descriptors: a thread with a working directory and umask, or with descriptors, of its own. */
#include "specimen.h"
#include <pthread.h>
#include <sched.h>

static int what;
static pthread_barrier_t made;

static void *second(void *unused) {
    must(unshare(what) == 0, "unshare");
    if (what == CLONE_FS) must(chdir("/bin") == 0, "chdir");
    pthread_barrier_wait(&made);
    for (;;) pause();
    return unused;
}

static void check(void) {}

int main(int count, char **arguments) {
    pthread_t thread;
    begin();
    must(count == 2, "apart places|descriptors");
    what = strcmp(arguments[1], "places") ? CLONE_FILES : CLONE_FS;
    must(pthread_barrier_init(&made, NULL, 2) == 0, "barrier");
    must(pthread_create(&thread, NULL, second, NULL) == 0, "pthread_create");
    pthread_barrier_wait(&made);
    rounds(check);
}
