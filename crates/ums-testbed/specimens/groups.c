/* groups: sessions and process groups, and children that have ended.
 *
 * Argument: the name of the state, as in the table at the end. */
#include "specimen.h"
#include <sys/prctl.h>

static pid_t child, further;
static int control[2];

static void wait_for_signals(void) {
    for (;;) pause();
}

/* A child that makes a grandchild and ends; the grandchild's id comes through a pipe. */
static void leave_behind(void (*before)(void), int keep_zombie) {
    must(pipe(control) == 0, "pipe");
    if ((child = fork()) == 0) {
        before();
        pid_t grandchild = fork();
        if (grandchild == 0) wait_for_signals();
        must(write(control[1], &grandchild, sizeof grandchild) == sizeof grandchild, "write");
        _exit(7);
    }
    must(read(control[0], &further, sizeof further) == sizeof further, "read");
    siginfo_t about;
    must(waitid(P_PID, child, &about, WEXITED | (keep_zombie ? WNOWAIT : 0)) == 0, "waitid");
    close(control[0]), close(control[1]);
}

static void is_in(pid_t process, pid_t session, pid_t group) {
    if (getsid(process) != session) bad("%d is in session %d and not %d", process, getsid(process), session);
    if (getpgid(process) != group) bad("%d is in group %d and not %d", process, getpgid(process), group);
}

static void lead_session(void) { must(setsid() > 0, "setsid"); }
static void lead_group(void) { must(setpgid(0, 0) == 0, "setpgid"); }

static void session_begin(void) { leave_behind(lead_session, 0); }
static void session_zombie_begin(void) { leave_behind(lead_session, 1); }
static void in_session(void) { is_in(further, child, child); }

static void group_begin(void) { leave_behind(lead_group, 0); }
static void group_zombie_begin(void) { leave_behind(lead_group, 1); }
static void in_group(void) { is_in(further, getsid(0), child); }

/* Both: a session whose leader has ended, and a group in it whose leader has ended. */
static int end_of_leader;
static void lead_both(void) {
    int ends[2];
    lead_session();
    must(pipe(ends) == 0, "pipe");
    end_of_leader = ends[1];
    if (fork() != 0) {
        close(ends[1]);
        must(read(ends[0], ends, 1) >= 0, "read");
        _exit(7);
    }
    lead_group();
}
static pid_t group_of_both;
static void both_begin(void) {
    must(pipe(control) == 0, "pipe");
    if ((child = fork()) == 0) {
        lead_both();
        pid_t grandchild = fork();
        if (grandchild == 0) {
            close(end_of_leader);
            wait_for_signals();
        }
        must(write(control[1], &grandchild, sizeof grandchild) == sizeof grandchild, "write");
        _exit(0);
    }
    must(read(control[0], &further, sizeof further) == sizeof further, "read");
    must(waitpid(child, NULL, 0) == child, "waitpid");
    group_of_both = getpgid(further);
}
static void in_both(void) { is_in(further, child, group_of_both); }

/* Sessions inside sessions. */
static void nested_begin(void) {
    must(pipe(control) == 0, "pipe");
    for (int depth = 0; depth < 4; depth++) {
        pid_t made = fork();
        if (made != 0 && depth == 0) {
            must(read(control[0], &further, sizeof further) == sizeof further, "read");
            return;
        }
        if (made != 0) wait_for_signals();
        lead_session();
    }
    pid_t self = getpid();
    must(write(control[1], &self, sizeof self) == sizeof self, "write");
    wait_for_signals();
}
static void nested(void) { is_in(further, further, further); }

/* A group whose leader's place another process has taken: a pipeline of a shell whose first member has
 * ended. */
static void pipeline_begin(void) {
    must((child = fork()) >= 0, "fork");
    if (child == 0) wait_for_signals();
    must(setpgid(child, child) == 0, "setpgid");
    must((further = fork()) >= 0, "fork");
    if (further == 0) wait_for_signals();
    must(setpgid(further, child) == 0, "setpgid");
    must(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child, "waitpid");
}

/* A child that has ended and was not asked for: how it ended stays. */
static void zombies_begin(void) {
    if ((child = fork()) == 0) _exit(42);
    if ((further = fork()) == 0) {
        raise(SIGTERM);
        _exit(0);
    }
    siginfo_t about;
    must(waitid(P_PID, child, &about, WEXITED | WNOWAIT) == 0, "waitid");
    must(waitid(P_PID, further, &about, WEXITED | WNOWAIT) == 0, "waitid");
}
static void zombies(void) {
    int status = 0;
    if (waitpid(child, &status, WNOHANG) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 42) bad("ended with %#x", status);
    if (waitpid(further, &status, WNOHANG) != further || !WIFSIGNALED(status) || WTERMSIG(status) != SIGTERM) bad("killed with %#x", status);
    zombies_begin();
}

/* Children of children come to who asked for them. */
static pid_t reaper;
static void reaper_begin(void) {
    must(pipe(control) == 0, "pipe");
    if ((reaper = fork()) == 0) {
        must(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "PR_SET_CHILD_SUBREAPER");
        int ready = 1;
        if (write(control[1], &ready, sizeof ready) != sizeof ready) _exit(1);
        for (;;) {
            int on = 0, status;
            prctl(PR_GET_CHILD_SUBREAPER, &on);
            if (!on) bad("not a reaper any more");
            pid_t middle = fork();
            if (middle == 0) {
                pid_t orphan = fork();
                if (orphan == 0) {
                    usleep(PERIOD_US);
                    _exit(getppid() == 1);
                }
                _exit(0);
            }
            waitpid(middle, NULL, 0);
            pid_t orphan = waitpid(-1, &status, 0);
            if (orphan < 0 || status) bad("the orphan went elsewhere: %s, %#x", strerror(errno), status);
        }
    }
    int ready;
    must(read(control[0], &ready, sizeof ready) == sizeof ready, "read");
}
static void reaping(void) {
    if (kill(reaper, 0)) bad("the reaper is gone");
}

/* Children of a process that has ended, adopted by the first. */
static void adopted(void) {
    if (kill(further, 0)) bad("the adopted process is gone");
    char path[64], line[256] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", further);
    FILE *file = fopen(path, "r");
    int parent = 0;
    if (!file || !fgets(line, sizeof line, file) || sscanf(strrchr(line, ')') + 2, "%*c %d", &parent) != 1 || parent != getpid()) bad("its parent is %d", parent);
    if (file) fclose(file);
}
static void nothing(void) {}
static void adopted_begin(void) { leave_behind(nothing, 0); }

static const struct state states[] = {
    {"session", session_begin, in_session}, {"session-zombie", session_zombie_begin, in_session},
    {"group", group_begin, in_group}, {"group-zombie", group_zombie_begin, in_group}, {"both", both_begin, in_both},
    {"nested", nested_begin, nested}, {"pipeline", pipeline_begin, in_group}, {"zombies", zombies_begin, zombies},
    {"reaper", reaper_begin, reaping}, {"adopted", adopted_begin, adopted},
};

int main(int count, char **names) {
    (void)count;
    be(states, sizeof states / sizeof *states, names);
}
