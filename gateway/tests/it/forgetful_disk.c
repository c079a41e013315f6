/* A disk that does not keep what it took, for the audit journal's records: while the file named by FORGETS exists, an
   fsync of theirs fails, and what was written since the last good one is gone, as when the kernel drops its pages. While
   the one named by STUCK exists, it does not come back. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int fdatasync(int fd) {
    static off_t kept;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    char *end = strrchr(path, '.');
    if (!end || strcmp(end, ".jsonl") != 0) {
        int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
        return real(fd);
    }
    off_t written = lseek(fd, 0, SEEK_END);
    while (access(getenv("STUCK"), F_OK) == 0) usleep(1000);
    if (access(getenv("FORGETS"), F_OK) != 0) {
        kept = written;
        return 0;
    }
    int again = open(path, O_WRONLY);
    for (off_t at = kept; at < written; at++) pwrite(again, "\n", 1, at);
    close(again);
    errno = EIO;
    return -1;
}
