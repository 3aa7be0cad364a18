/* Counts, records and cuts off what a process and its children do to the files below a directory.
 *
 * Loaded by LD_PRELOAD. A page shared with the tests (`control.py` has its layout, too) says what to
 * do; behind it in the same file is the record. All calls that change something take one lock, so
 * that there is one order of them over all processes; a call counts once it has succeeded. After the
 * call number `kill_at` nothing more happens: the main process is killed, and every other one at its
 * next call, unless only the main process is to die (what the kernel does that runs out of memory).
 *
 * Not seen: stores to memory that is mapped from a file (that one was mapped writable is recorded),
 * what io_uring does, times, owners and modes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, RENAME, UNLINK, RMDIR, MKDIR, LINK, SYMLINK, FSYNC, MAPPED, UNKNOWN };
enum { ALL = 0, MAIN_ONLY = 1 };

struct control {
    uint32_t is_set_up;
    uint32_t is_armed;      /* 0: everything passes, nothing counts */
    uint32_t is_dead;
    uint32_t main_pid;
    uint32_t kill_kind;
    uint32_t is_half;       /* a write that is the last call writes half of its bytes */
    uint32_t is_recording;
    uint32_t has_overflown;
    uint64_t count;
    uint64_t kill_at;
    uint64_t record_bytes;
    uint64_t last_kind;     /* of the last call, for messages */
    char root[1024];
    char preload[1024];
    pthread_mutex_t lock;
};

#define RECORD_AT 8192

static struct control *control;
static char *record;
static uint64_t record_max;

#define REAL(type, name, ...)                                                                      \
    static type (*real_##name)(__VA_ARGS__);                                                       \
    if (!real_##name) real_##name = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CRASH_CONTROL");
    struct stat found;
    int descriptor;
    if (!path || (descriptor = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC)) < 0) return;
    if (fstat(descriptor, &found) == 0) {
        char *all = mmap(NULL, (size_t)found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        if (all != MAP_FAILED) {
            struct control *one = (struct control *)all;
            record = all + RECORD_AT;
            record_max = (uint64_t)found.st_size - RECORD_AT;
            if (!one->is_set_up) {
                pthread_mutexattr_t kind;
                pthread_mutexattr_init(&kind);
                pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
                pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
                pthread_mutex_init(&one->lock, &kind);
                one->is_set_up = 1;
            }
            control = one;
        }
    }
    close(descriptor);
}

static int is_armed(void) { return control && control->is_armed; }

static void take(void) {
    if (pthread_mutex_lock(&control->lock) == EOWNERDEAD) pthread_mutex_consistent(&control->lock);
    if (control->is_dead) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

static void let_go(void) { pthread_mutex_unlock(&control->lock); }

static void put(uint32_t kind, uint64_t inode, uint64_t offset, const void *a, size_t a_bytes,
                const void *b, size_t b_bytes) {
    uint32_t head[4] = {kind, (uint32_t)getpid(), (uint32_t)a_bytes, (uint32_t)b_bytes};
    uint64_t numbers[2] = {inode, offset};
    uint64_t size = sizeof head + sizeof numbers + a_bytes + b_bytes;
    control->last_kind = kind;
    if (control->is_recording) {
        if (control->record_bytes + size > record_max) {
            control->has_overflown = 1;
        } else {
            char *at = record + control->record_bytes;
            memcpy(at, head, sizeof head);
            memcpy(at + sizeof head, numbers, sizeof numbers);
            at += sizeof head + sizeof numbers;
            memcpy(at, a, a_bytes);
            memcpy(at + a_bytes, b, b_bytes);
            control->record_bytes += size;
        }
    }
    control->count++;
    if (control->count == control->kill_at) {
        if (control->kill_kind == ALL) control->is_dead = 1;
        kill((pid_t)control->main_pid, SIGKILL);
        if (control->kill_kind == ALL) {
            kill(getpid(), SIGKILL);
            for (;;) pause();
        }
        if ((pid_t)control->main_pid == getpid())
            for (;;) pause();
    }
}

static int is_last(void) { return control->kill_at && control->count + 1 == control->kill_at; }

/* The absolute path, if it is below the root. */
static int below(int directory, const char *path, char *out) {
    char base[PATH_MAX];
    size_t length = 0, root = strlen(control->root);
    if (!path) return 0;
    if (path[0] != '/') {
        char link[64];
        ssize_t got;
        if (directory == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        got = readlink(link, base, sizeof base - 1);
        if (got <= 0) return 0;
        base[got] = 0;
        length = (size_t)snprintf(out, PATH_MAX, "%s/%s", base, path);
    } else {
        length = (size_t)snprintf(out, PATH_MAX, "%s", path);
    }
    if (length >= PATH_MAX) return 0;
    char *to = out;
    for (const char *from = out; *from; from++) {
        if (from[0] == '/' && from[1] == '/') continue;
        if (from[0] == '/' && from[1] == '.' && (from[2] == '/' || !from[2])) { from++; continue; }
        *to++ = *from;
    }
    *to = 0;
    if (to > out + 1 && to[-1] == '/') to[-1] = 0;
    return strncmp(out, control->root, root) == 0 && (out[root] == '/' || !out[root]);
}

static int file_below(int descriptor, char *out, struct stat *found) {
    char link[64];
    ssize_t got;
    size_t root = strlen(control->root);
    if (fstat(descriptor, found) != 0 || !(S_ISREG(found->st_mode) || S_ISDIR(found->st_mode))) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    got = readlink(link, out, PATH_MAX - 1);
    if (got <= 0) return 0;
    out[got] = 0;
    return strncmp(out, control->root, root) == 0 && (out[root] == '/' || !out[root]);
}

/* --- opening ---------------------------------------------------------------------------------- */

static int opened(int directory, const char *path, int flags, mode_t mode) {
    char at[PATH_MAX];
    struct stat before, after;
    int descriptor, saved;
    if (!(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE || !is_armed() ||
        !below(directory, path, at))
        return (int)syscall(SYS_openat, directory, path, flags, mode);
    take();
    int was_there = lstat(at, &before) == 0;
    descriptor = (int)syscall(SYS_openat, directory, path, flags, mode);
    saved = errno;
    if (descriptor >= 0 && fstat(descriptor, &after) == 0) {
        if (!was_there) put(CREATE, after.st_ino, 0, at, strlen(at), "", 0);
        else if ((flags & O_TRUNC) && before.st_size) put(TRUNCATE, after.st_ino, 0, at, strlen(at), "", 0);
    }
    let_go();
    errno = saved;
    return descriptor;
}

#define OPEN_MODE(last)                                                                            \
    mode_t mode = 0;                                                                               \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                           \
        va_list more;                                                                              \
        va_start(more, last);                                                                      \
        mode = va_arg(more, mode_t);                                                               \
        va_end(more);                                                                              \
    }

int open(const char *path, int flags, ...) { OPEN_MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { OPEN_MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int directory, const char *path, int flags, ...) { OPEN_MODE(flags) return opened(directory, path, flags, mode); }
int openat64(int directory, const char *path, int flags, ...) { OPEN_MODE(flags) return opened(directory, path, flags, mode); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

static FILE *streamed(const char *path, const char *mode, FILE *(*real)(const char *, const char *)) {
    char at[PATH_MAX];
    /* What stdio writes is not seen: nobody is to write so here. */
    if (is_armed() && strpbrk(mode, "wa+") && below(AT_FDCWD, path, at)) {
        take();
        put(UNKNOWN, 0, 0, at, strlen(at), "", 0);
        let_go();
    }
    return real(path, mode);
}

FILE *fopen(const char *path, const char *mode) {
    REAL(FILE *, fopen, const char *, const char *);
    return streamed(path, mode, real_fopen);
}
FILE *fopen64(const char *path, const char *mode) {
    REAL(FILE *, fopen64, const char *, const char *);
    return streamed(path, mode, real_fopen64);
}

/* --- writing ---------------------------------------------------------------------------------- */

static ssize_t wrote(int descriptor, const void *data, size_t size, off_t offset) {
    char at[PATH_MAX];
    struct stat found;
    ssize_t written;
    int saved, flags;
    if (!is_armed() || !file_below(descriptor, at, &found))
        return offset < 0 ? syscall(SYS_write, descriptor, data, size)
                          : syscall(SYS_pwrite64, descriptor, data, size, offset);
    take();
    if (control->is_half && size > 1 && is_last()) size /= 2;
    flags = fcntl(descriptor, F_GETFL);
    if (offset < 0) {
        written = syscall(SYS_write, descriptor, data, size);
        saved = errno;
        if (written > 0) offset = lseek(descriptor, 0, SEEK_CUR) - written;
    } else {
        written = syscall(SYS_pwrite64, descriptor, data, size, offset);
        saved = errno;
        if (written > 0 && (flags & O_APPEND) && fstat(descriptor, &found) == 0)
            offset = found.st_size - written;
    }
    if (written > 0) put(WRITE, found.st_ino, (uint64_t)offset, at, strlen(at), data, (size_t)written);
    let_go();
    errno = saved;
    return written;
}

ssize_t write(int descriptor, const void *data, size_t size) { return wrote(descriptor, data, size, -1); }
ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) { return wrote(descriptor, data, size, offset); }
ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) { return wrote(descriptor, data, size, offset); }

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    char at[PATH_MAX];
    struct stat found;
    if (!is_armed() || !file_below(descriptor, at, &found)) return syscall(SYS_writev, descriptor, parts, count);
    for (int one = 0; one < count; one++)
        if (parts[one].iov_len) return wrote(descriptor, parts[one].iov_base, parts[one].iov_len, -1);
    return 0;
}

static int truncated(int descriptor, off_t size) {
    char at[PATH_MAX];
    struct stat found;
    int result, saved;
    if (!is_armed() || !file_below(descriptor, at, &found)) return (int)syscall(SYS_ftruncate, descriptor, size);
    take();
    result = (int)syscall(SYS_ftruncate, descriptor, size);
    saved = errno;
    if (result == 0) put(TRUNCATE, found.st_ino, (uint64_t)size, at, strlen(at), "", 0);
    let_go();
    errno = saved;
    return result;
}

int ftruncate(int descriptor, off_t size) { return truncated(descriptor, size); }
int ftruncate64(int descriptor, off64_t size) { return truncated(descriptor, size); }

/* What could change a file in ways that are not followed here is told, and fails the tests. */
static void unknown(int descriptor, uint32_t kind) {
    char at[PATH_MAX];
    struct stat found;
    if (is_armed() && file_below(descriptor, at, &found)) {
        take();
        put(kind, found.st_ino, 0, at, strlen(at), "", 0);
        let_go();
    }
}

ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    unknown(to, UNKNOWN);
    return syscall(SYS_sendfile, to, from, offset, size);
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) { return sendfile(to, from, offset, size); }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) {
    unknown(to, UNKNOWN);
    return syscall(SYS_copy_file_range, from, a, to, b, size, flags);
}
ssize_t pwritev(int descriptor, const struct iovec *parts, int count, off_t offset) {
    unknown(descriptor, UNKNOWN);
    return syscall(SYS_pwritev, descriptor, parts, count, offset, 0);
}
int fallocate(int descriptor, int mode, off_t offset, off_t size) {
    unknown(descriptor, UNKNOWN);
    return (int)syscall(SYS_fallocate, descriptor, mode, offset, size);
}
int fallocate64(int descriptor, int mode, off64_t offset, off64_t size) { return fallocate(descriptor, mode, offset, size); }
int posix_fallocate(int descriptor, off_t offset, off_t size) { return fallocate(descriptor, 0, offset, size) ? errno : 0; }
int posix_fallocate64(int descriptor, off64_t offset, off64_t size) { return posix_fallocate(descriptor, offset, size); }
void *mmap(void *address, size_t size, int protection, int flags, int descriptor, off_t offset) {
    if ((flags & MAP_SHARED) && (protection & PROT_WRITE) && descriptor >= 0) unknown(descriptor, MAPPED);
    return (void *)syscall(SYS_mmap, address, size, protection, flags, descriptor, offset);
}
void *mmap64(void *address, size_t size, int protection, int flags, int descriptor, off64_t offset) {
    return mmap(address, size, protection, flags, descriptor, offset);
}

/* --- flushing --------------------------------------------------------------------------------- */

static int flushed(int descriptor, long call) {
    char at[PATH_MAX];
    struct stat found;
    if (!is_armed() || !file_below(descriptor, at, &found)) return (int)syscall(call, descriptor);
    take();
    put(FSYNC, found.st_ino, S_ISDIR(found.st_mode) ? 1 : 0, at, strlen(at), "", 0);
    let_go();
    return 0; /* the tests lie in memory or may be lost */
}

int fsync(int descriptor) { return flushed(descriptor, SYS_fsync); }
int fdatasync(int descriptor) { return flushed(descriptor, SYS_fdatasync); }

/* --- names ------------------------------------------------------------------------------------ */

static int renamed(int a, const char *old, int b, const char *new, unsigned flags) {
    char from[PATH_MAX], to[PATH_MAX];
    int result, saved;
    if (!is_armed()) return (int)syscall(SYS_renameat2, a, old, b, new, flags);
    int from_is = below(a, old, from), to_is = below(b, new, to);
    if (!from_is && !to_is) return (int)syscall(SYS_renameat2, a, old, b, new, flags);
    take();
    result = (int)syscall(SYS_renameat2, a, old, b, new, flags);
    saved = errno;
    if (result == 0) put(from_is && to_is && !(flags & 2) ? RENAME : UNKNOWN, 0, 0, from, strlen(from), to, strlen(to));
    let_go();
    errno = saved;
    return result;
}

int rename(const char *old, const char *new) { return renamed(AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int a, const char *old, int b, const char *new) { return renamed(a, old, b, new, 0); }
int renameat2(int a, const char *old, int b, const char *new, unsigned flags) { return renamed(a, old, b, new, flags); }

#define ONE_NAME(kind, directory, path, call)                                                      \
    char at[PATH_MAX];                                                                             \
    int result, saved;                                                                             \
    if (!is_armed() || !below(directory, path, at)) return (int)(call);                            \
    take();                                                                                        \
    result = (int)(call);                                                                          \
    saved = errno;                                                                                 \
    if (result == 0) put(kind, 0, 0, at, strlen(at), "", 0);                                       \
    let_go();                                                                                      \
    errno = saved;                                                                                 \
    return result;

int unlinkat(int directory, const char *path, int flags) {
    ONE_NAME(flags & AT_REMOVEDIR ? RMDIR : UNLINK, directory, path, syscall(SYS_unlinkat, directory, path, flags))
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    struct stat found;
    return lstat(path, &found) == 0 && S_ISDIR(found.st_mode) ? rmdir(path) : unlink(path);
}
int mkdirat(int directory, const char *path, mode_t mode) {
    ONE_NAME(MKDIR, directory, path, syscall(SYS_mkdirat, directory, path, mode))
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int linkat(int a, const char *old, int b, const char *new, int flags) {
    char from[PATH_MAX], to[PATH_MAX];
    int result, saved;
    if (!is_armed() || !below(b, new, to)) return (int)syscall(SYS_linkat, a, old, b, new, flags);
    int from_is = below(a, old, from);
    take();
    result = (int)syscall(SYS_linkat, a, old, b, new, flags);
    saved = errno;
    if (result == 0) put(from_is ? LINK : UNKNOWN, 0, 0, from, strlen(from), to, strlen(to));
    let_go();
    errno = saved;
    return result;
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

int symlinkat(const char *target, int directory, const char *path) {
    char at[PATH_MAX];
    int result, saved;
    if (!is_armed() || !below(directory, path, at)) return (int)syscall(SYS_symlinkat, target, directory, path);
    take();
    result = (int)syscall(SYS_symlinkat, target, directory, path);
    saved = errno;
    if (result == 0) put(SYMLINK, 0, 0, at, strlen(at), target, strlen(target));
    let_go();
    errno = saved;
    return result;
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

/* --- children --------------------------------------------------------------------------------- */

/* The service gives its children an environment of their own: the shim goes along all the same. */
int execve(const char *path, char *const arguments[], char *const environment[]) {
    REAL(int, execve, const char *, char *const[], char *const[]);
    char *with[1024], preload[1100], page[1100];
    const char *place = getenv("CRASH_CONTROL");
    size_t count = 0;
    if (!is_armed() || !place) return real_execve(path, arguments, environment);
    for (; environment && environment[count] && count < 1020; count++) {
        if (!strncmp(environment[count], "LD_PRELOAD=", 11)) return real_execve(path, arguments, environment);
        with[count] = environment[count];
    }
    snprintf(preload, sizeof preload, "LD_PRELOAD=%s", control->preload);
    snprintf(page, sizeof page, "CRASH_CONTROL=%s", place);
    with[count++] = preload;
    with[count++] = page;
    with[count] = NULL;
    return real_execve(path, arguments, with);
}
