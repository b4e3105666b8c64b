// Sets up a ring every 5 ms and says what io_uring_setup answers; with an argument it keeps the first one that it gets.
#include <errno.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
    for (;;) {
        char params[256] = {0};
        long rc = syscall(SYS_io_uring_setup, 1, params);
        printf("%d\n", rc < 0 ? errno : 0);
        fflush(stdout);
        if (rc >= 0 && argc > 1) break;
        if (rc >= 0) close(rc);
        usleep(5000);
    }
    for (;;) pause();
}
