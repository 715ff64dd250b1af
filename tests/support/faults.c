/* Makes system calls on the files below one folder fail, as a broken disk does: LD_PRELOAD.
 *
 * fault_arm says which call fails with which error; the counters are shared by forked processes.
 * What is not armed, and every path elsewhere, goes to the C library as it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <unistd.h>

enum call { OPENAT, READ, WRITE, FSYNC, RENAME, UNLINK, FLOCK, MKDIR, COPY, STAT, CALLS };

struct shared {
    char folder[PATH_MAX];
    int call, error, lasting;
    long first, seen[CALLS], failed;
};
static struct shared *state;

__attribute__((constructor)) static void begin(void) {
    void *made = mmap(0, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) return;
    state = made;
    state->call = -1;
}

/* lasting: every call from the first on, and not that one alone. */
void fault_arm(const char *folder, int call, int error, long first, int lasting) {
    memset(state, 0, sizeof *state);
    snprintf(state->folder, sizeof state->folder, "%s", folder);
    state->call = call, state->error = error, state->first = first, state->lasting = lasting;
}

long fault_seen(int call) { return state->seen[call]; }
long fault_failed(void) { return state->failed; }

static int is_below(const char *path) {
    size_t n = strlen(state->folder);
    return n && !strncmp(path, state->folder, n) && (path[n] == '/' || !path[n]);
}

static int fails(enum call call) {
    long now = __atomic_add_fetch(&state->seen[call], 1, __ATOMIC_RELAXED);
    if ((int)call != state->call) return 0;
    if (state->lasting ? now < state->first : now != state->first) return 0;
    __atomic_add_fetch(&state->failed, 1, __ATOMIC_RELAXED);
    errno = state->error;
    return 1;
}

static int fails_of_handle(enum call call, int handle) {
    char link[64], path[PATH_MAX];
    if (!state || !*state->folder || handle < 0) return 0;
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (n < 0) return 0;
    path[n] = 0;
    return is_below(path) && fails(call);
}

static int fails_at(enum call call, int folder, const char *path) {
    char here[PATH_MAX];
    if (!state || !*state->folder || !path) return 0;
    if (path[0] == '/') return is_below(path) && fails(call);
    if (folder != AT_FDCWD) return fails_of_handle(call, folder);
    int kept = errno;
    int below = getcwd(here, sizeof here) && is_below(here);
    errno = kept;
    return below && fails(call);
}

#define NEXT(name) \
    static __typeof__(&name) next; \
    if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define OF_PATH(type, call, name, parameters, folder, path, arguments) \
    type name parameters { \
        NEXT(name); \
        return fails_at(call, folder, path) ? -1 : next arguments; \
    }
#define OF_HANDLE(type, call, name, parameters, handle, arguments) \
    type name parameters { \
        NEXT(name); \
        return fails_of_handle(call, handle) ? -1 : next arguments; \
    }
#define MODE(flags) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags), mode = va_arg(rest, mode_t), va_end(rest); \
    }
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags) NEXT(name); \
        return fails_at(OPENAT, AT_FDCWD, path) ? -1 : next(path, flags, mode); \
    }
#define OPEN_AT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        MODE(flags) NEXT(name); \
        return fails_at(OPENAT, folder, path) ? -1 : next(folder, path, flags, mode); \
    }
#define OPEN_STREAM(name) \
    FILE *name(const char *path, const char *mode) { \
        NEXT(name); \
        return fails_at(OPENAT, AT_FDCWD, path) ? 0 : next(path, mode); \
    }

OPEN(open) OPEN(open64) OPEN_AT(openat) OPEN_AT(openat64) OPEN_STREAM(fopen) OPEN_STREAM(fopen64)
OF_HANDLE(ssize_t, READ, read, (int f, void *p, size_t n), f, (f, p, n))
OF_HANDLE(ssize_t, READ, pread, (int f, void *p, size_t n, off_t o), f, (f, p, n, o))
OF_HANDLE(ssize_t, READ, pread64, (int f, void *p, size_t n, off64_t o), f, (f, p, n, o))
OF_HANDLE(ssize_t, WRITE, write, (int f, const void *p, size_t n), f, (f, p, n))
OF_HANDLE(ssize_t, WRITE, pwrite, (int f, const void *p, size_t n, off_t o), f, (f, p, n, o))
OF_HANDLE(ssize_t, WRITE, pwrite64, (int f, const void *p, size_t n, off64_t o), f, (f, p, n, o))
OF_HANDLE(ssize_t, WRITE, writev, (int f, const struct iovec *v, int n), f, (f, v, n))
OF_HANDLE(int, FSYNC, fsync, (int f), f, (f))
OF_HANDLE(int, FSYNC, fdatasync, (int f), f, (f))
OF_HANDLE(int, FLOCK, flock, (int f, int how), f, (f, how))
OF_PATH(int, RENAME, rename, (const char *a, const char *b), AT_FDCWD, b, (a, b))
OF_PATH(int, RENAME, renameat, (int i, const char *a, int j, const char *b), j, b, (i, a, j, b))
OF_PATH(int, RENAME, renameat2, (int i, const char *a, int j, const char *b, unsigned f), j, b,
        (i, a, j, b, f))
OF_PATH(int, UNLINK, unlink, (const char *p), AT_FDCWD, p, (p))
OF_PATH(int, UNLINK, unlinkat, (int d, const char *p, int f), d, p, (d, p, f))
OF_PATH(int, UNLINK, rmdir, (const char *p), AT_FDCWD, p, (p))
OF_PATH(int, MKDIR, mkdir, (const char *p, mode_t m), AT_FDCWD, p, (p, m))
OF_PATH(int, MKDIR, mkdirat, (int d, const char *p, mode_t m), d, p, (d, p, m))
OF_PATH(int, STAT, stat, (const char *p, struct stat *s), AT_FDCWD, p, (p, s))
OF_PATH(int, STAT, stat64, (const char *p, struct stat64 *s), AT_FDCWD, p, (p, s))
OF_PATH(int, STAT, lstat, (const char *p, struct stat *s), AT_FDCWD, p, (p, s))
OF_PATH(int, STAT, lstat64, (const char *p, struct stat64 *s), AT_FDCWD, p, (p, s))
OF_PATH(int, STAT, fstatat, (int d, const char *p, struct stat *s, int f), d, p, (d, p, s, f))
OF_PATH(int, STAT, fstatat64, (int d, const char *p, struct stat64 *s, int f), d, p, (d, p, s, f))
OF_PATH(int, STAT, statx, (int d, const char *p, int f, unsigned m, struct statx *s), d, p,
        (d, p, f, m, s))
OF_HANDLE(int, STAT, fstat, (int f, struct stat *s), f, (f, s))
OF_HANDLE(int, STAT, fstat64, (int f, struct stat64 *s), f, (f, s))
OF_HANDLE(ssize_t, COPY, sendfile, (int a, int b, off_t *o, size_t n), a, (a, b, o, n))
OF_HANDLE(ssize_t, COPY, sendfile64, (int a, int b, off64_t *o, size_t n), a, (a, b, o, n))
OF_HANDLE(ssize_t, COPY, copy_file_range,
          (int a, off64_t *i, int b, off64_t *j, size_t n, unsigned f), b, (a, i, b, j, n, f))
