/* Counts what a process does to the files under one folder, and at the n-th of these lets it die or fail.
 *
 * Preloaded; idle until shim_arm(). One thread. A death is a SIGKILL of the process itself, with, if so
 * wanted, everything taken back that was written and not synced (what a power cut may do).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { COUNT, KILL, TORN, DROP, FAIL };
enum { WRITES = 1, SYNCS = 2, NAMES = 4 };

static struct {
    char prefix[PATH_MAX];
    long count, target, failed;
    int armed, way, error, kinds, lasting;
    void (*dying)(void);
} shim;

struct unsynced {
    struct unsynced *before;
    dev_t dev;
    ino_t ino;
    off_t at, old_size;
    size_t length;
    char *old, path[PATH_MAX];
};
static struct unsynced *newest;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static int ours(const char *path) {
    return shim.armed && path && !strncmp(path, shim.prefix, strlen(shim.prefix));
}

static int path_of(int fd, char *path) {
    char link[64] = "/proc/self/fd/";
    char digits[16];
    int n = 0, at = strlen(link);
    do digits[n++] = '0' + fd % 10; while ((fd /= 10));
    while (n) link[at++] = digits[--n];
    link[at] = 0;
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static int our_file(int fd, char *path) {
    struct stat st;
    return shim.armed && path_of(fd, path) && ours(path) && !fstat(fd, &st) && S_ISREG(st.st_mode);
}

static void take_back(void) {
    for (struct unsynced *one = newest; one; one = one->before) {
        int fd = REAL(open)(one->path, O_WRONLY | O_CLOEXEC);
        if (fd < 0) continue;
        if (one->old) REAL(pwrite)(fd, one->old, one->length, one->at);
        REAL(ftruncate)(fd, one->old_size);
        REAL(close)(fd);
    }
}

static void die(void) {
    shim.armed = 0;
    if (shim.dying) shim.dying();
    if (shim.way == DROP) take_back();
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* 0: go on. -1: fail, errno is set. 1: do half of it, then die. */
static int point(int kind) {
    if (shim.way == TORN && kind != WRITES) return 0;
    long number = ++shim.count;
    if (shim.way == FAIL) {
        if (!(kind & shim.kinds)) return 0;
        number = ++shim.failed;
        if (shim.lasting ? number < shim.target : number != shim.target) return 0;
        errno = shim.error;
        return -1;
    }
    if (shim.way == COUNT || number != shim.target) return 0;
    if (shim.way == TORN) return 1;
    die();
    return 0;
}

static void remember(int fd, const char *path, off_t at, size_t length) {
    struct stat st;
    if (shim.way != DROP || fstat(fd, &st)) return;
    struct unsynced *one = calloc(1, sizeof *one);
    *one = (struct unsynced){newest, st.st_dev, st.st_ino, at, st.st_size, 0, NULL, ""};
    strcpy(one->path, path);
    if (at < st.st_size && length) {
        int again = REAL(open)(path, O_RDONLY | O_CLOEXEC);
        one->old = malloc(length);
        ssize_t got = again < 0 ? -1 : REAL(pread)(again, one->old, length, at);
        one->length = got < 0 ? 0 : got;
        if (again >= 0) REAL(close)(again);
    }
    newest = one;
}

static void synced(int fd) {
    struct stat st;
    if (fstat(fd, &st)) return;
    for (struct unsynced **link = &newest; *link;) {
        struct unsynced *one = *link;
        if (one->dev == st.st_dev && one->ino == st.st_ino) {
            *link = one->before;
            free(one->old);
            free(one);
        } else {
            link = &one->before;
        }
    }
}

ssize_t write(int fd, const void *data, size_t length) {
    char path[PATH_MAX];
    if (our_file(fd, path)) {
        int what = point(WRITES);
        if (what < 0) return -1;
        struct stat st;
        fstat(fd, &st);
        int appends = REAL(fcntl)(fd, F_GETFL) & O_APPEND;
        remember(fd, path, appends ? st.st_size : lseek(fd, 0, SEEK_CUR), length);
        if (what) {
            REAL(write)(fd, data, length / 2);
            die();
        }
    }
    return REAL(write)(fd, data, length);
}

static ssize_t put(int fd, const void *data, size_t length, off_t at) {
    char path[PATH_MAX];
    if (our_file(fd, path)) {
        int what = point(WRITES);
        if (what < 0) return -1;
        remember(fd, path, at, length);
        if (what) {
            REAL(pwrite)(fd, data, length / 2, at);
            die();
        }
    }
    return REAL(pwrite)(fd, data, length, at);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return put(fd, data, length, at); }
ssize_t pwrite64(int fd, const void *data, size_t length, off_t at) { return put(fd, data, length, at); }

static int cut(int fd, off_t size) {
    char path[PATH_MAX];
    struct stat st;
    if (our_file(fd, path)) {
        int what = point(WRITES);
        if (what < 0) return -1;
        if (what) die();
        if (!fstat(fd, &st) && size < st.st_size) remember(fd, path, size, st.st_size - size);
    }
    return REAL(ftruncate)(fd, size);
}

int ftruncate(int fd, off_t size) { return cut(fd, size); }
int ftruncate64(int fd, off_t size) { return cut(fd, size); }

static int sync_(int fd, int (*how)(int)) {
    char path[PATH_MAX];
    if (our_file(fd, path)) {
        if (point(SYNCS) < 0) return -1;
        synced(fd);
    }
    return how(fd);
}

int fsync(int fd) { return sync_(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_(fd, REAL(fdatasync)); }

int rename(const char *from, const char *to) {
    if (ours(to) && point(NAMES) < 0) return -1;
    return REAL(rename)(from, to);
}
int unlink(const char *path) {
    if (ours(path) && point(NAMES) < 0) return -1;
    return REAL(unlink)(path);
}
int link(const char *from, const char *to) {
    if (ours(to) && point(NAMES) < 0) return -1;
    return REAL(link)(from, to);
}

void shim_arm(const char *prefix, int way, long target, int error, int kinds, int lasting,
              void (*dying)(void)) {
    strncpy(shim.prefix, prefix, PATH_MAX - 1);
    shim.count = shim.failed = 0;
    shim.way = way, shim.target = target, shim.error = error, shim.kinds = kinds;
    shim.lasting = lasting, shim.dying = dying, shim.armed = 1;
}
void shim_disarm(void) { shim.armed = 0; }
void shim_step(void) { if (shim.armed && shim.way != FAIL) point(0); }
long shim_count(int failing) { return failing ? shim.failed : shim.count; }
