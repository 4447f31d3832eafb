/* terminals: pseudo-terminals whose both ends are in the service.
 *
 * Argument: the name of the state, as in the table at the end. */
#include "specimen.h"
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>

static int master, slave;
static pid_t leader;
static char name_of_slave[64];

static void open_master(void) {
    master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    must(master >= 0, "/dev/ptmx");
    must(grantpt(master) == 0 && unlockpt(master) == 0, "unlockpt");
    must(ptsname_r(master, name_of_slave, sizeof name_of_slave) == 0, "ptsname");
}

static void open_slave(void) {
    slave = open(name_of_slave, O_RDWR | O_NOCTTY);
    must(slave >= 0, name_of_slave);
}

static void make_raw(void) {
    struct termios modes;
    must(tcgetattr(slave, &modes) == 0, "tcgetattr");
    cfmakeraw(&modes);
    modes.c_cc[VINTR] = 7;
    must(tcsetattr(slave, TCSANOW, &modes) == 0, "tcsetattr");
}

/* Writes, and waits until the other end has it: a terminal works on it in its own time. */
static void pass(int from, int to, const char *text) {
    char got[256] = "";
    size_t length = strlen(text), read_so_far = 0;
    if (write(from, text, length) != (ssize_t)length) bad("write: %s", strerror(errno));
    for (int times = 0; read_so_far < length && times < 200; times++) {
        ssize_t more = read(to, got + read_so_far, length - read_so_far);
        if (more > 0) read_so_far += more;
        else usleep(10000);
    }
    if (strcmp(got, text)) bad("`%s` arrives and not `%s`", got, text);
}

static void unblock(int end) { must(fcntl(end, F_SETFL, O_RDWR | O_NONBLOCK) == 0, "O_NONBLOCK"); }

/* A session of its own in the terminal, with a job in the foreground and one in the background. */
static void session(void (*with)(void)) {
    if ((leader = fork()) != 0) {
        usleep(PERIOD_US);
        return;
    }
    must(setsid() > 0, "setsid");
    open_slave();
    must(ioctl(slave, TIOCSCTTY, 0) == 0, "TIOCSCTTY");
    close(master);
    with();
    for (;;) pause();
}

/* A job that answers each line that it reads. */
static void answer(void) {
    char line[64];
    for (;;) {
        ssize_t length = read(slave, line, sizeof line);
        if (length > 0 && write(slave, line, length) != length) _exit(1);
        if (length <= 0) usleep(10000);
    }
}
static void two_jobs(void) {
    pid_t job = fork();
    if (job == 0) {
        setpgid(0, 0);
        signal(SIGTTOU, SIG_IGN);
        tcsetpgrp(slave, getpid());
        answer();
    }
    if (fork() == 0) {
        setpgid(0, 0);
        for (;;) pause();
    }
}

static void job_begin(void) {
    struct winsize size = {.ws_row = 33, .ws_col = 77};
    open_master();
    open_slave();
    make_raw();
    close(slave);
    must(ioctl(master, TIOCSWINSZ, &size) == 0, "TIOCSWINSZ");
    unblock(master);
    session(two_jobs);
}
static void job(void) {
    struct winsize size;
    pid_t of = 0, group = 0;
    ioctl(master, TIOCGWINSZ, &size);
    if (size.ws_row != 33 || size.ws_col != 77) bad("the window is %u x %u", size.ws_col, size.ws_row);
    if (ioctl(master, TIOCGSID, &of) || of != leader) bad("the session is %d and not %d", of, leader);
    if (ioctl(master, TIOCGPGRP, &group) || group == leader || kill(-group, 0)) bad("the group is %d: %s", group, strerror(errno));
    pass(master, master, "question");
}

/* The first process of the session has ended, with which the terminal has hung up for everybody. */
static void leave(void) {
    if (fork() == 0) answer();
    _exit(0);
}
static void is_hung_up(void) {
    char got;
    if (read(slave, &got, 1) != 0) bad("not hung up: %s", strerror(errno));
    if (write(slave, "x", 1) >= 0 || errno != EIO) bad("writing to what is hung up: %s", strerror(errno));
}

/* A leader that is a zombie. */
static void zombie_begin(void) {
    signal(SIGHUP, SIG_IGN);
    open_master();
    open_slave();
    make_raw();
    unblock(master);
    session(leave);
}
static void zombie_leader(void) {
    siginfo_t about = {0};
    if (waitid(P_PID, leader, &about, WEXITED | WNOHANG | WNOWAIT) || about.si_pid != leader) bad("the leader is not there");
}

/* Bytes in both directions that nobody has read. */
static void queue(void) {
    must(write(master, "to the slave", 12) == 12 && write(slave, "to the master", 13) == 13, "write");
}
static void queued_begin(void) {
    open_master();
    open_slave();
    make_raw();
    unblock(master);
    unblock(slave);
    queue();
}
static void expect(int end, const char *text) {
    char got[64] = "";
    for (int times = 0; times < 200 && !got[0]; times++)
        if (read(end, got, sizeof got - 1) <= 0) usleep(10000);
    if (strcmp(got, text)) bad("`%s` is there and not `%s`", got, text);
}
static void queued(void) {
    expect(slave, "to the slave");
    expect(master, "to the master");
    queue();
}

/* Lines that are complete and one that is not, in a terminal that edits lines. */
static void lines(void) { must(write(master, "one\ntwo\nthr", 11) == 11, "write"); }
static void lines_begin(void) {
    open_master();
    open_slave();
    struct termios modes;
    must(tcgetattr(slave, &modes) == 0, "tcgetattr");
    modes.c_lflag &= ~ECHO;
    must(tcsetattr(slave, TCSANOW, &modes) == 0, "tcsetattr");
    unblock(slave);
    lines();
}
static void lines_check(void) {
    expect(slave, "one\n");
    expect(slave, "two\n");
    tcflush(slave, TCIFLUSH);
    lines();
}

static void packet_begin(void) {
    int on = 1;
    open_master();
    open_slave();
    make_raw();
    must(ioctl(master, TIOCPKT, &on) == 0, "TIOCPKT");
    must(ioctl(slave, TIOCEXCL) == 0, "TIOCEXCL");
    unblock(master);
    struct winsize size = {.ws_row = 5, .ws_col = 9};
    must(ioctl(slave, TIOCSWINSZ, &size) == 0, "TIOCSWINSZ");
}
static void packet(void) {
    char got[64] = "";
    int on = 0, exclusive = 0;
    if (ioctl(master, TIOCGPKT, &on) || !on) bad("no packet mode");
    if (ioctl(slave, TIOCGEXCL, &exclusive) || !exclusive) bad("not exclusive");
    if (write(slave, "word", 4) != 4) bad("write: %s", strerror(errno));
    for (int times = 0; times < 200; times++) {
        ssize_t length = read(master, got, sizeof got);
        if (length == 5 && got[0] == TIOCPKT_DATA && !memcmp(got + 1, "word", 4)) return;
        if (length <= 0) usleep(10000);
    }
    bad("no packet");
}

/* The master is closed. */
static void hung_begin(void) {
    signal(SIGHUP, SIG_IGN);
    open_master();
    open_slave();
    close(master);
}
/* A master alone, whose slave was never opened, and locked. */
static void alone_begin(void) {
    master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    must(master >= 0, "/dev/ptmx");
}
static void alone(void) {
    int locked = 0;
    if (ioctl(master, TIOCGPTLCK, &locked) || !locked) bad("not locked");
}

/* /dev/tty is open. */
static int controlling;
static void open_controlling(void) {
    controlling = open("/dev/tty", O_RDWR);
    must(controlling >= 0, "/dev/tty");
    answer();
}
static void controlling_begin(void) {
    open_master();
    open_slave();
    make_raw();
    close(slave);
    unblock(master);
    session(open_controlling);
}
static void controlling_check(void) { pass(master, master, "question"); }

/* The same, where one process has both ends and leads the session. */
static void controlling_alone_begin(void) {
    must(getsid(0) == getpid() || setsid() > 0, "setsid");
    open_master();
    open_slave();
    make_raw();
    must(ioctl(slave, TIOCSCTTY, 0) == 0, "TIOCSCTTY");
    controlling = open("/dev/tty", O_RDWR);
    must(controlling >= 0, "/dev/tty");
    unblock(controlling);
}
static void controlling_alone(void) {
    pass(master, controlling, "question");
    if (tcgetsid(controlling) != getpid()) bad("another session");
}

/* A terminal of a session whose slave nobody has open but by the session itself. */
static void closed_slave(void) { close(slave); }
static void bare_begin(void) {
    open_master();
    unblock(master);
    session(closed_slave);
}
static void bare(void) {
    pid_t of = 0;
    if (ioctl(master, TIOCGSID, &of) || of != leader) bad("the session is %d and not %d: %s", of, leader, strerror(errno));
}

/* A terminal in flight to another process. */
static void flight_begin(void) {
    int ends[2];
    char control[CMSG_SPACE(sizeof(int))] = "";
    struct iovec text = {"F", 1};
    struct msghdr message = {.msg_iov = &text, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    open_master();
    open_slave();
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    memcpy(CMSG_DATA(header), &slave, sizeof slave);
    must(sendmsg(ends[0], &message, 0) == 1, "sendmsg");
    close(slave);
}
static void nothing(void) {}

/* A terminal that nobody else may open. */
static void exclusive_begin(void) {
    open_master();
    open_slave();
    must(ioctl(slave, TIOCEXCL) == 0, "TIOCEXCL");
}
static void exclusive(void) {
    int is = 0;
    if (ioctl(slave, TIOCGEXCL, &is) || !is) bad("the terminal can be opened by others");
}

static const struct state states[] = {
    {"job", job_begin, job}, {"zombie", zombie_begin, zombie_leader},
    {"queued", queued_begin, queued}, {"lines", lines_begin, lines_check}, {"packet", packet_begin, packet},
    {"hung", hung_begin, is_hung_up}, {"alone", alone_begin, alone}, {"controlling", controlling_begin, controlling_check},
    {"controlling-alone", controlling_alone_begin, controlling_alone},
    {"bare", bare_begin, bare}, {"flight", flight_begin, nothing}, {"exclusive", exclusive_begin, exclusive},
};

int main(int count, char **names) {
    (void)count;
    be(states, sizeof states / sizeof *states, names);
}
