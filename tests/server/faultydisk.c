/* A disk that fails when it is told to, for the files of SQLite databases: preloaded into a server by disk.py.
 *
 * The first byte of the file that FAULTY_DISK names is looked at on every call, so a test turns a fault on and off
 * while the server runs: 'f' no room for writes, 'w' I/O errors of writes, 's' of syncs, 'r' of reads and writes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

static volatile const char *control;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FAULTY_DISK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *page = mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
        if (page != MAP_FAILED) control = page;
        close(fd);
    }
}

/* Whether a call of one of these kinds fails on this file; errno says how. */
static int fails(int fd, const char *kinds) {
    char link[64], path[4096];
    if (!control || !*control || !strchr(kinds, *control)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    if (!strstr(path, ".sqlite3")) return 0;
    errno = *control == 'f' ? ENOSPC : EIO;
    return 1;
}

#define NEXT(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    static ssize_t (*next)(int, const void *, size_t, off64_t);
    if (!next) next = NEXT(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    return fails(fd, "fwr") ? -1 : next(fd, data, size, at);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }

ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next) next = NEXT(ssize_t, "write", int, const void *, size_t);
    return fails(fd, "fwr") ? -1 : next(fd, data, size);
}

int ftruncate64(int fd, off64_t size) {
    static int (*next)(int, off64_t);
    if (!next) next = NEXT(int, "ftruncate64", int, off64_t);
    return fails(fd, "fwr") ? -1 : next(fd, size);
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int fallocate64(int fd, int mode, off64_t at, off64_t size) {
    static int (*next)(int, int, off64_t, off64_t);
    if (!next) next = NEXT(int, "fallocate64", int, int, off64_t, off64_t);
    return fails(fd, "fwr") ? -1 : next(fd, mode, at, size);
}

int fdatasync(int fd) {
    static int (*next)(int);
    if (!next) next = NEXT(int, "fdatasync", int);
    return fails(fd, "swr") ? -1 : next(fd);
}

int fsync(int fd) {
    static int (*next)(int);
    if (!next) next = NEXT(int, "fsync", int);
    return fails(fd, "swr") ? -1 : next(fd);
}

ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
    static ssize_t (*next)(int, void *, size_t, off64_t);
    if (!next) next = NEXT(ssize_t, "pread64", int, void *, size_t, off64_t);
    return fails(fd, "r") ? -1 : next(fd, data, size, at);
}

ssize_t pread(int fd, void *data, size_t size, off_t at) { return pread64(fd, data, size, at); }

ssize_t read(int fd, void *data, size_t size) {
    static ssize_t (*next)(int, void *, size_t);
    if (!next) next = NEXT(ssize_t, "read", int, void *, size_t);
    return fails(fd, "r") ? -1 : next(fd, data, size);
}
