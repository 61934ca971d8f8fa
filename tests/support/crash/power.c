/* Preloaded into a writer: keeps a journal of what each write replaced in the files of one folder, until
 * those files are synced. With it a test can take back what a power failure may take: see power.py.
 *
 * Journal POWER_JOURNAL.PID, for files under POWER_FOLDER: entries of `struct entry`, then `length` bytes
 * that stood there before. An entry of length 0 says that the file was synced. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct entry {
    uint64_t inode, offset, length, size;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int journal(void) {
    static int file = -1;
    static pid_t owner = 0;
    if (owner != getpid()) {
        char path[4096];
        snprintf(path, sizeof path, "%s.%d", getenv("POWER_JOURNAL"), (int)getpid());
        file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0666);
        owner = getpid();
    }
    return file;
}

static int watched(int fd, struct stat *status) {
    char link[64], path[4096];
    const char *folder = getenv("POWER_FOLDER");
    if (!folder || fstat(fd, status) || !S_ISREG(status->st_mode))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

static void note(struct entry *entry, void *old) {
    struct iovec parts[2] = {{entry, sizeof *entry}, {old, entry->length}};
    if (((ssize_t(*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev"))(journal(), parts, 2) < 0)
        abort();
}

static void before(int fd, off_t offset, size_t length) {
    struct stat status;
    int flags = fcntl(fd, F_GETFL);
    if (!length || (flags & (O_DSYNC | O_SYNC)) || !watched(fd, &status))
        return;
    if (offset < 0)
        offset = flags & O_APPEND ? status.st_size : lseek(fd, 0, SEEK_CUR);
    struct entry entry = {status.st_ino, offset, length, status.st_size};
    char name[64], *old = calloc(1, length);
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    pthread_mutex_lock(&lock);
    int copy = open(name, O_RDONLY); /* fd itself may be open for writing only */
    if (copy < 0 || pread(copy, old, length, offset) < 0)
        abort();
    close(copy);
    note(&entry, old);
    pthread_mutex_unlock(&lock);
    free(old);
}

static int after_sync(int fd, int failed) {
    struct stat status;
    if (!failed && watched(fd, &status)) {
        struct entry entry = {status.st_ino, 0, 0, status.st_size};
        pthread_mutex_lock(&lock);
        note(&entry, NULL);
        pthread_mutex_unlock(&lock);
    }
    return failed;
}

static size_t total(const struct iovec *parts, int count) {
    size_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += parts[i].iov_len;
    return sum;
}

#define PWRITE(name)                                                                    \
    ssize_t name(int fd, const void *data, size_t length, off_t offset) {               \
        before(fd, offset, length);                                                     \
        return ((ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, #name))( \
            fd, data, length, offset);                                                  \
    }
#define PWRITEV(name)                                                                       \
    ssize_t name(int fd, const struct iovec *parts, int count, off_t offset) {              \
        before(fd, offset, total(parts, count));                                            \
        return ((ssize_t(*)(int, const struct iovec *, int, off_t))dlsym(RTLD_NEXT, #name))( \
            fd, parts, count, offset);                                                      \
    }
#define SYNC(name)                                                             \
    int name(int fd) {                                                         \
        return after_sync(fd, ((int (*)(int))dlsym(RTLD_NEXT, #name))(fd));    \
    }

PWRITE(pwrite)
PWRITE(pwrite64)
PWRITEV(pwritev)
PWRITEV(pwritev64)
SYNC(fsync)
SYNC(fdatasync)

ssize_t write(int fd, const void *data, size_t length) {
    before(fd, -1, length);
    return ((ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(fd, data, length);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    before(fd, -1, total(parts, count));
    return ((ssize_t(*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev"))(fd, parts, count);
}
