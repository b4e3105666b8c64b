// Writes a line to a file again and again and says on standard output when the outcome changes.
// argv: the file.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int fd = open(argv[1], O_CREAT | O_WRONLY | O_APPEND, 0644);
    int last = -1;
    for (;;) {
        int now = pwrite(fd, "x\n", 2, 0) == 2 ? 0 : errno;
        if (now != last) {
            printf("%s\n", now ? strerror(now) : "ok");
            fflush(stdout);
        }
        last = now;
        nanosleep(&(struct timespec){0, 1000000}, 0);
    }
    return argc;
}
