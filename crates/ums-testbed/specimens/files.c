/* files: files and descriptors in states of their own. Arguments: the states, by name. */
#include "specimen.h"
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

static void check_nothing(void) {}

static int with_content(const char *path, const char *content) {
    int fd = open(path, O_CREAT | O_RDWR | O_TRUNC, 0644);
    must(fd >= 0 && write(fd, content, strlen(content)) == (ssize_t)strlen(content), path);
    return fd;
}

static void reads(const char *what, int fd, const char *content) {
    char text[64] = "";
    if (pread(fd, text, sizeof text - 1, 0) < 0 || strcmp(text, content) != 0) bad("%s reads '%s': %s", what, text, strerror(errno));
}

static void reads_at(const char *path, const char *content) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) bad("%s: %s", path, strerror(errno));
    reads(path, fd, content);
    close(fd);
}

static int same(int fd, const char *path) {
    struct stat one, other;
    return fstat(fd, &one) == 0 && stat(path, &other) == 0 && one.st_ino == other.st_ino;
}

/* A path as long as one may be, open, mapped, and the working directory. */
static char long_path[4096];
static int long_fd;
static char *long_map;
static void make_long(void) {
    char part[202];
    size_t length = 0;
    memset(part, 'd', 200);
    part[200] = 0;
    while (length + 201 + 100 < sizeof long_path) {
        must(mkdir(part, 0755) == 0 && chdir(part) == 0, "a deep directory");
        length += 201;
    }
    long_fd = with_content("file", "deep");
    long_map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, long_fd, 0);
    must(long_map != MAP_FAILED && getcwd(long_path, sizeof long_path) != NULL, "mmap");
}
static void check_long(void) {
    static char now[4096];
    if (getcwd(now, sizeof now) == NULL || strcmp(now, long_path) != 0) bad("working directory: %s", strerror(errno));
    if (memcmp(long_map, "deep", 4) != 0) bad("mapping");
    reads("long", long_fd, "deep");
    reads_at("file", "deep");
}

/* Names that are hard to read. */
static const char *odd[] = {"/data/new\nline", "/data/tab\tand \\012 space", "/data/not\xff\xfeutf8", "/data/ends (deleted)", "/data/link_remap.1", "/data/[heap]"};
#define ODD (sizeof odd / sizeof *odd)
static int odd_fd[ODD];
static char *odd_map[ODD];
static void make_odd(void) {
    for (size_t at = 0; at < ODD; at++) {
        odd_fd[at] = with_content(odd[at], "odd");
        odd_map[at] = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, odd_fd[at], 0);
        must(odd_map[at] != MAP_FAILED, "mmap");
    }
    must(mkdir("/data/dir\n\xff", 0755) == 0 && chdir("/data/dir\n\xff") == 0, "chdir");
}
static void check_odd(void) {
    static char where[4096];
    for (size_t at = 0; at < ODD; at++) {
        reads(odd[at], odd_fd[at], "odd");
        if (memcmp(odd_map[at], "odd", 3) != 0) bad("mapping of %s", odd[at]);
        if (!same(odd_fd[at], odd[at])) bad("%s is another file", odd[at]);
    }
    if (getcwd(where, sizeof where) == NULL || strcmp(where, "/data/dir\n\xff") != 0) bad("working directory %s", where);
}

/* The same, with their names removed. */
static void make_odd_removed(void) {
    make_odd();
    for (size_t at = 0; at < ODD; at++) unlink(odd[at]);
}
static void check_odd_removed(void) {
    for (size_t at = 0; at < ODD; at++) {
        reads(odd[at], odd_fd[at], "odd");
        if (memcmp(odd_map[at], "odd", 3) != 0) bad("mapping of %s", odd[at]);
        if (access(odd[at], F_OK) == 0) bad("%s is back", odd[at]);
    }
}

/* Descriptors that give no access. */
static int path_file, path_dir, path_link, path_gone;
static void make_path(void) {
    close(with_content("/data/path", "path"));
    close(with_content("/data/path-gone", "gone"));
    must(symlink("path", "/data/path-link") == 0, "symlink");
    path_file = open("/data/path", O_PATH);
    path_dir = open("/data", O_PATH | O_DIRECTORY);
    path_link = open("/data/path-link", O_PATH | O_NOFOLLOW);
    path_gone = open("/data/path-gone", O_PATH);
    must(unlink("/data/path-gone") == 0, "unlink");
}
static void check_path(void) {
    char text[64];
    int flags = fcntl(path_file, F_GETFL);
    if ((flags & O_PATH) == 0) bad("O_PATH is gone: %o", flags);
    int fd = openat(path_dir, "path", O_RDONLY);
    reads("by directory", fd, "path");
    close(fd);
    struct stat link;
    if (fstat(path_link, &link) != 0 || !S_ISLNK(link.st_mode)) bad("the link is no link: %o", link.st_mode);
    snprintf(text, sizeof text, "/proc/self/fd/%d", path_gone);
    fd = open(text, O_RDONLY);
    reads("gone", fd, "gone");
    close(fd);
}

/* A file that never had a name, and gets one. */
static int nameless;
static void make_nameless(void) {
    nameless = open("/data", O_TMPFILE | O_RDWR, 0640);
    must(nameless >= 0 && write(nameless, "nameless", 8) == 8, "O_TMPFILE");
}
static void check_nameless_only(void) { reads("nameless", nameless, "nameless"); }

/* Directories that were removed: open, and the working directory. */
static int removed_dir;
static void make_removed_dir(void) {
    must(mkdir("/data/removed", 0755) == 0, "mkdir");
    removed_dir = open("/data/removed", O_RDONLY | O_DIRECTORY);
    must(removed_dir >= 0 && rmdir("/data/removed") == 0, "rmdir");
}
static void check_removed_dir(void) {
    struct stat about;
    if (fstat(removed_dir, &about) != 0 || !S_ISDIR(about.st_mode) || about.st_nlink != 0) bad("removed directory: mode %o, links %lu", about.st_mode, (unsigned long)about.st_nlink);
    if (openat(removed_dir, "x", O_CREAT | O_RDWR, 0600) >= 0) bad("a file is made in a removed directory");
    if (access("/data/removed", F_OK) == 0) bad("the removed directory is back");
}
static void make_removed_cwd(void) { must(mkdir("/data/cwd", 0755) == 0 && chdir("/data/cwd") == 0 && rmdir("/data/cwd") == 0, "rmdir"); }
static void check_removed_cwd(void) {
    char path[64];
    if (getcwd(path, sizeof path) != NULL || errno != ENOENT) bad("working directory: %s", path);
    if (access("/data/cwd", F_OK) == 0) bad("the removed directory is back");
}
/* A deleted file in a removed directory. */
static int inside;
static void make_removed_both(void) {
    must(mkdir("/data/both", 0755) == 0, "mkdir");
    inside = with_content("/data/both/file", "inside");
    must(unlink("/data/both/file") == 0 && rmdir("/data/both") == 0, "rmdir");
}
static void check_removed_both(void) {
    reads("inside", inside, "inside");
    if (access("/data/both", F_OK) == 0) bad("the removed directory is back");
}
/* A file in a directory that has another name now. */
static int moved;
static void make_moved(void) {
    must(mkdir("/data/from", 0755) == 0, "mkdir");
    moved = with_content("/data/from/file", "moved");
    must(rename("/data/from", "/data/to") == 0 && mkdir("/data/from", 0755) == 0, "rename");
    close(with_content("/data/from/file", "another"));
}
static void check_moved(void) {
    reads("moved", moved, "moved");
    reads_at("/data/from/file", "another");
    if (!same(moved, "/data/to/file")) bad("the moved file is another one");
}

/* Holes stay holes. */
static int sparse;
static void make_sparse(void) {
    sparse = with_content("/data/sparse", "begin");
    must(ftruncate(sparse, 1 << 30) == 0 && pwrite(sparse, "end", 3, (1 << 30) - 3) == 3, "sparse");
    close(open("/data/sparse-closed", O_CREAT | O_RDWR, 0600));
    must(truncate("/data/sparse-closed", 1 << 30) == 0, "truncate");
}
static void check_sparse(void) {
    struct stat about;
    char text[4] = "";
    if (fstat(sparse, &about) != 0 || about.st_size != 1 << 30 || about.st_blocks > 4096) bad("sparse: %ld bytes, %ld blocks", (long)about.st_size, (long)about.st_blocks);
    if (pread(sparse, text, 3, (1 << 30) - 3) != 3 || strcmp(text, "end") != 0) bad("sparse: '%s'", text);
    if (stat("/data/sparse-closed", &about) != 0 || about.st_size != 1 << 30 || about.st_blocks > 64) bad("sparse-closed: %ld blocks", (long)about.st_blocks);
}

/* What else a file has. */
static const struct timespec times[2] = {{1234567890, 123456789}, {987654321, 987654321}};
static const unsigned char capability[20] = {0, 0, 0, 2, 0, 4};
static void make_attributes(void) {
    int fd = with_content("/data/attributes", "attributes");
    must(fsetxattr(fd, "user.name", "value", 5, 0) == 0, "setxattr");
    must(fchown(fd, 4000000000U, 3999999999U) == 0 && fchmod(fd, 06751) == 0, "fchown");
    must(fsetxattr(fd, "security.capability", capability, sizeof capability, 0) == 0, "security.capability");
    must(futimens(fd, times) == 0, "futimens");
    close(fd);
    must(mkdir("/data/sticky", 0755) == 0 && chmod("/data/sticky", 03777) == 0 && utimensat(AT_FDCWD, "/data/sticky", times, 0) == 0, "sticky");
    must(symlink("nowhere", "/data/dangling") == 0 && lchown("/data/dangling", 5, 6) == 0 && utimensat(AT_FDCWD, "/data/dangling", times, AT_SYMLINK_NOFOLLOW) == 0, "symlink");
    must(link("/data/attributes", "/data/second") == 0, "link");
    must(mkfifo("/data/fifo", 0620) == 0, "mkfifo");
    must(mknod("/data/null", S_IFCHR | 0666, makedev(1, 3)) == 0, "mknod");
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/data/socket"};
    must(bind(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&name, sizeof name) == 0, "bind");
}
static void check_times(const char *path) {
    struct stat about;
    if (lstat(path, &about) != 0 || about.st_mtim.tv_sec != times[1].tv_sec || about.st_mtim.tv_nsec != times[1].tv_nsec) bad("%s was modified at %ld.%09ld", path, (long)about.st_mtim.tv_sec, about.st_mtim.tv_nsec);
}
static void check_attributes(void) {
    struct stat about, second;
    char value[32] = "";
    if (getxattr("/data/attributes", "user.name", value, sizeof value) != 5 || memcmp(value, "value", 5) != 0) bad("user.name: %s", strerror(errno));
    if (getxattr("/data/attributes", "security.capability", value, sizeof value) != sizeof capability || memcmp(value, capability, sizeof capability) != 0) bad("security.capability: %s", strerror(errno));
    if (stat("/data/attributes", &about) != 0 || about.st_uid != 4000000000U || about.st_gid != 3999999999U || (about.st_mode & 07777) != 06751) bad("owner %u:%u, mode %o", about.st_uid, about.st_gid, about.st_mode);
    if (stat("/data/second", &second) != 0 || second.st_ino != about.st_ino || second.st_nlink != 2) bad("the second name is another file");
    check_times("/data/attributes");
    check_times("/data/sticky");
    check_times("/data/dangling");
    if (stat("/data/sticky", &about) != 0 || (about.st_mode & 07777) != 03777) bad("sticky: mode %o", about.st_mode);
    if (lstat("/data/dangling", &about) != 0 || about.st_uid != 5 || about.st_gid != 6) bad("dangling: %u:%u", about.st_uid, about.st_gid);
    if (stat("/data/fifo", &about) != 0 || !S_ISFIFO(about.st_mode) || (about.st_mode & 0777) != 0600) bad("fifo: mode %o", about.st_mode);
    if (stat("/data/null", &about) != 0 || !S_ISCHR(about.st_mode) || about.st_rdev != makedev(1, 3)) bad("null: mode %o", about.st_mode);
    if (stat("/data/socket", &about) != 0 || !S_ISSOCK(about.st_mode)) bad("socket: mode %o", about.st_mode);
}

/* Files of the kernel. */
static int status_fd, statistics, kernel_fd, device_fd, root_fd, cwd_fd;
static void make_kernel_files(void) {
    status_fd = open("/proc/self/status", O_RDONLY);
    statistics = open("/proc/stat", O_RDONLY);
    kernel_fd = open("/proc/sys/kernel/ostype", O_RDONLY);
    device_fd = open("/sys/class/net/lo/mtu", O_RDONLY);
    must(status_fd >= 0 && statistics >= 0 && kernel_fd >= 0 && device_fd >= 0, "open");
}
static void check_kernel_files(void) {
    char text[64] = "", wanted[64];
    if (pread(status_fd, text, 5, 0) != 5 || memcmp(text, "Name:", 5) != 0) bad("status: %s", strerror(errno));
    if (pread(statistics, text, 3, 0) != 3 || memcmp(text, "cpu", 3) != 0) bad("stat: %s", strerror(errno));
    if (pread(kernel_fd, text, 5, 0) != 5 || memcmp(text, "Linux", 5) != 0) bad("ostype: %s", strerror(errno));
    if (pread(device_fd, text, 5, 0) != 5 || memcmp(text, "65536", 5) != 0) bad("mtu: %s", strerror(errno));
    snprintf(wanted, sizeof wanted, "/proc/self/fd/%d", status_fd);
    if (readlink(wanted, text, sizeof text - 1) < 0 || strncmp(text, "/proc/1/status", 14) != 0) bad("status is %s", text);
}
static void make_magic_links(void) {
    root_fd = open("/proc/self/root", O_PATH);
    cwd_fd = open("/proc/self/cwd", O_RDONLY | O_DIRECTORY);
    must(root_fd >= 0 && cwd_fd >= 0, "open");
}
static void check_magic_links(void) {
    if (!same(root_fd, "/") || !same(cwd_fd, ".")) bad("they are of other files");
}
static void make_own_program(void) { must(open("/proc/self/exe", O_PATH) >= 0, "O_PATH"); }
static int dead_fd;
static void make_dead(void) {
    pid_t child = fork();
    if (child == 0) for (;;) pause();
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/stat", child);
    dead_fd = open(path, O_RDONLY);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}
static void check_dead(void) {
    char text[8];
    if (pread(dead_fd, text, 5, 0) >= 0 || errno != ESRCH) bad("the file of a process that has ended: %s", strerror(errno));
}
static void make_namespace(void) { must(open("/proc/self/ns/net", O_RDONLY) >= 0 && open("/proc/self/ns/uts", O_RDONLY) >= 0, "ns"); }

/* The program's own file. */
static void copy_program(const char *to) {
    static char bytes[1 << 21];
    int from = open("/proc/self/exe", O_RDONLY), out = open(to, O_CREAT | O_WRONLY | O_TRUNC, 0755);
    ssize_t length = read(from, bytes, sizeof bytes);
    must(length > 0 && write(out, bytes, (size_t)length) == length, to);
    close(from);
    close(out);
}
static void make_replaced_exe(void) {
    copy_program("/data/new");
    must(rename("/data/new", "/bin/files") == 0, "rename");
}
static void check_replaced_exe(void) {
    char path[64] = "";
    if (readlink("/proc/self/exe", path, sizeof path - 1) < 0 || strstr(path, " (deleted)") == NULL) bad("the program is %s", path);
    if (access("/bin/files", X_OK) != 0) bad("the new program is gone");
}

/* Much in /dev/shm. */
static char *shm;
static int shm_gone;
#define SHM_MIB 48UL
static void make_shm(void) {
    int fd = open("/dev/shm/big", O_CREAT | O_RDWR, 0600);
    must(fd >= 0 && ftruncate(fd, SHM_MIB << 20) == 0, "/dev/shm/big");
    shm = mmap(NULL, SHM_MIB << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (size_t page = 0; page < SHM_MIB << 8; page++) *(size_t *)(shm + page * PAGE) = page + 1;
    close(fd);
    fd = open("/dev/shm/gone", O_CREAT | O_RDWR, 0600);
    must(write(fd, "gone", 4) == 4 && unlink("/dev/shm/gone") == 0, "/dev/shm/gone");
    shm_gone = fd;
}
static void check_shm(void) {
    for (size_t page = 0; page < SHM_MIB << 8; page++)
        if (*(size_t *)(shm + page * PAGE) != page + 1) {
            bad("/dev/shm: page %zu", page);
            break;
        }
    reads("/dev/shm/gone", shm_gone, "gone");
}

static const struct state states[] = {
    {"long", make_long, check_long},
    {"odd", make_odd, check_odd},
    {"odd-removed", make_odd_removed, check_odd_removed},
    {"path", make_path, check_path},
    {"nameless-only", make_nameless, check_nameless_only},
    {"removed-dir", make_removed_dir, check_removed_dir},
    {"removed-cwd", make_removed_cwd, check_removed_cwd},
    {"removed-both", make_removed_both, check_removed_both},
    {"moved", make_moved, check_moved},
    {"sparse", make_sparse, check_sparse},
    {"attributes", make_attributes, check_attributes},
    {"kernel-files", make_kernel_files, check_kernel_files},
    {"magic-links", make_magic_links, check_magic_links},
    {"own-program", make_own_program, check_nothing},
    {"dead", make_dead, check_dead},
    {"namespace", make_namespace, check_nothing},
    {"replaced-exe", make_replaced_exe, check_replaced_exe},
    {"shm", make_shm, check_shm},
};

int main(int count, char **names) {
    (void)count;
    be(states, sizeof states / sizeof *states, names);
}
