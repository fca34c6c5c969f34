/* Counts what a process does to files below a folder, and lets the n-th of it go wrong.

   Preloaded before the C library, so that Python and the libraries written in other languages are
   counted alike. Nothing is counted before fault_arm(). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { KILL = 1, FULL = 2 };

static char folder[PATH_MAX];
static long counted, at;
static int how;

/* Count from now on; the `number`-th operation goes wrong, none if it is 0. */
void fault_arm(const char *below, long number, int mode) {
    snprintf(folder, sizeof folder, "%s", below);
    counted = 0;
    at = number;
    how = mode;
}

long fault_count(void) { return counted; }

static int due(const char *path) {
    return folder[0] && strncmp(path, folder, strlen(folder)) == 0 && ++counted == at;
}

static int due_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return due(path);
}

static int fail(void) {
    if (how == KILL) kill(getpid(), SIGKILL);
    errno = ENOSPC;
    return -1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (due_fd(fd)) {
        /* What a loss of power or a full disk leaves: half of it. */
        real(fd, data, size / 2);
        return fail();
    }
    return real(fd, data, size);
}

int fsync(int fd) {
    REAL(fsync);
    return due_fd(fd) ? fail() : real(fd);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return due(to) ? fail() : real(from, to);
}

int unlink(const char *path) {
    REAL(unlink);
    if (how == KILL && due(path)) return fail();  /* a full disk lets files go */
    return real(path);
}
