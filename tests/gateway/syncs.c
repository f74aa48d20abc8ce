/* Preloaded into a gateway: keeps, in the folder that SYNCS_FOLDER names, what a power cut would leave for certain.
 *
 *   f-INODE  a file's content as of its last fsync, fdatasync or msync
 *   d-INODE  a folder's entries as of its last fsync, one "INODE NAME" a line
 *   log      when each msync began: nanoseconds of CLOCK_MONOTONIC, one a line
 *
 * What is kept was read before the real call began, so that nothing counts as synced that came later. A file that is
 * removed is gone at once. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const char *folder;
static int (*real_fsync)(int), (*real_fdatasync)(int), (*real_msync)(void *, size_t, int);
static int (*real_unlink)(const char *), (*real_rename)(const char *, const char *);

__attribute__((constructor)) static void begin(void) {
    folder = getenv("SYNCS_FOLDER");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_msync = dlsym(RTLD_NEXT, "msync");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    real_rename = dlsym(RTLD_NEXT, "rename");
}

static void put(char kind, unsigned long inode, const char *bytes, size_t length) {
    char beside[512], path[512];
    snprintf(beside, sizeof beside, "%s/new-%ld", folder, (long)syscall(SYS_gettid));
    snprintf(path, sizeof path, "%s/%c-%lu", folder, kind, inode);
    int out = open(beside, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    for (size_t at = 0; at < length;) {
        ssize_t n = write(out, bytes + at, length - at);
        if (n <= 0) abort();
        at += n;
    }
    close(out);
    if (real_rename(beside, path)) abort();
}

static char *content(int fd, size_t *length) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int in = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (in < 0 || fstat(in, &status)) abort();
    char *bytes = malloc(status.st_size + 1);
    size_t at = 0;
    for (ssize_t n; at < (size_t)status.st_size && (n = pread(in, bytes + at, status.st_size - at, at)) > 0;) at += n;
    close(in);
    *length = at;
    return bytes;
}

static char *entries(int fd, size_t *length) {
    char path[64], *text = NULL;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    DIR *open_folder = opendir(path);
    FILE *out = open_memstream(&text, length);
    if (!open_folder || !out) abort();
    for (struct dirent *entry; (entry = readdir(open_folder));) fprintf(out, "%lu %s\n", (unsigned long)entry->d_ino, entry->d_name);
    closedir(open_folder);
    fclose(out);
    return text;
}

static int sync_file(int fd, int (*real)(int)) {
    struct stat status;
    if (!folder || fstat(fd, &status) || !(S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))) return real(fd);
    size_t length = 0;
    char *bytes = S_ISDIR(status.st_mode) ? entries(fd, &length) : content(fd, &length);
    int result = real(fd);
    if (!result) put(S_ISDIR(status.st_mode) ? 'd' : 'f', status.st_ino, bytes, length);
    free(bytes);
    return result;
}

int fsync(int fd) { return sync_file(fd, real_fsync); }
int fdatasync(int fd) { return sync_file(fd, real_fdatasync); }

/* The inode and the path of the file that is mapped at `address`, and which byte of it that is. */
static unsigned long mapped(char *address, char *path, size_t *offset) {
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[1024];
    unsigned long found = 0;
    while (!found && fgets(line, sizeof line, maps)) {
        unsigned long from, to, at, inode;
        path[0] = 0;
        if (sscanf(line, "%lx-%lx %*s %lx %*s %lu %511[^\n]", &from, &to, &at, &inode, path) < 4) continue;
        if ((unsigned long)address < from || (unsigned long)address >= to) continue;
        found = inode;
        *offset = at + ((unsigned long)address - from);
    }
    fclose(maps);
    return found;
}

int msync(void *address, size_t length, int flags) {
    if (!folder) return real_msync(address, length, flags);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    char path[512], text[64];
    size_t offset = 0;
    unsigned long inode = mapped(address, path, &offset);
    struct stat status;
    char *bytes = malloc(length);
    memcpy(bytes, address, length);
    int result = real_msync(address, length, flags);
    if (!result && inode && !stat(path, &status)) {
        snprintf(path, sizeof path, "%s/f-%lu", folder, inode);
        int out = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        if (ftruncate(out, status.st_size) || pwrite(out, bytes, length, offset) != (ssize_t)length) abort();
        close(out);
        snprintf(path, sizeof path, "%s/log", folder);
        int log = open(path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
        int n = snprintf(text, sizeof text, "%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
        if (write(log, text, n) != n) abort();
        close(log);
    }
    free(bytes);
    return result;
}

/* Its inode may be given to another file, of which nothing is on disk then. */
static void forget(unsigned long inode) {
    char path[512];
    snprintf(path, sizeof path, "%s/f-%lu", folder, inode);
    real_unlink(path);
}

int unlink(const char *path) {
    struct stat status;
    int is_file = folder && !lstat(path, &status) && S_ISREG(status.st_mode);
    if (is_file) forget(status.st_ino);
    return real_unlink(path);
}

int rename(const char *from, const char *to) {
    struct stat status;
    int replaces = folder && !lstat(to, &status) && S_ISREG(status.st_mode);
    int result = real_rename(from, to);
    if (replaces && !result) forget(status.st_ino);
    return result;
}
