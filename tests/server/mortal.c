/* A process that dies with a write to its database: preloaded into a server by mortal.py.
 *
 * The file that MORTAL names says with which one, counted from when the file says so, and whether half of the write
 * is still done: "12 half #3", the last word being another each time. Who dies takes the file away, so that the
 * process after it lives. How many there were is kept beside it. Only files of SQLite databases count.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static long seen;
static char told[64];

static int of_database(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    const char *name = strrchr(path, '/');
    return name && strstr(name, ".sqlite3") != NULL;
}

static void die(const char *control) {
    unlink(control);
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Called before a write of `size` bytes; those of its half are written by `half`, where there is one. */
#define MORTAL(fd, half)                                                                 \
    do {                                                                                 \
        const char *control = getenv("MORTAL");                                          \
        if (control && of_database(fd)) {                                                \
            char said[64] = "", path[4096];                                              \
            int file = open(control, O_RDONLY | O_CLOEXEC);                              \
            if (file >= 0) {                                                             \
                if (syscall(SYS_read, file, said, sizeof said - 1) < 0) said[0] = 0;     \
                close(file);                                                             \
                if (strcmp(said, told)) {                                                \
                    seen = 0;                                                            \
                    memcpy(told, said, sizeof told);                                     \
                }                                                                        \
                long now = __sync_add_and_fetch(&seen, 1);                               \
                snprintf(path, sizeof path, "%s.seen", control);                         \
                int count = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);            \
                if (count >= 0) {                                                        \
                    int digits = snprintf(path, sizeof path, "%09ld", now);              \
                    syscall(SYS_write, count, path, digits);                             \
                    close(count);                                                        \
                }                                                                        \
                if (now == atol(said)) {                                                 \
                    if (strstr(said, "half")) half;                                      \
                    die(control);                                                        \
                }                                                                        \
            }                                                                            \
        }                                                                                \
    } while (0)

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    MORTAL(fd, syscall(SYS_pwrite64, fd, data, size / 2, at));
    return syscall(SYS_pwrite64, fd, data, size, at);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }

ssize_t write(int fd, const void *data, size_t size) {
    MORTAL(fd, syscall(SYS_write, fd, data, size / 2));
    return syscall(SYS_write, fd, data, size);
}

int ftruncate64(int fd, off64_t size) {
    MORTAL(fd, (void)0);
    return syscall(SYS_ftruncate, fd, size);
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
