// Threads that call pwrite and fsync for ever and count how each call ended, in a file that the test maps.
// argv: counters file, number of threads.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

// One cache line a thread: calls made, EIO, ENOSPC, anything else that is not success.
struct counters { volatile long calls, eio, enospc, bad, pad[4]; };
static struct counters *all;

static void count(struct counters *c, long rc, long want) {
    c->calls++;
    if (rc == want) return;
    if (rc < 0 && errno == EIO) c->eio++;
    else if (rc < 0 && errno == ENOSPC) c->enospc++;
    else c->bad++;
}

static void *work(void *argument) {
    struct counters *c = argument;
    int fd = open("/dev/null", O_WRONLY);
    char bytes[8] = {0};
    while (1) {
        count(c, syscall(SYS_pwrite64, fd, bytes, 8, 0), 8);
        // /dev/null has no fsync: EINVAL is what the kernel says, so that is success here.
        long rc = syscall(SYS_fsync, fd);
        if (rc < 0 && errno == EINVAL) rc = 0;
        count(c, rc, 0);
    }
    return 0;
}

int main(int argc, char **argv) {
    int threads = atoi(argv[2]);
    int fd = open(argv[1], O_RDWR);
    all = mmap(0, 64 * threads, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    pthread_t t;
    for (int i = 1; i < threads; i++) pthread_create(&t, 0, work, &all[i]);
    work(&all[0]);
    return argc;
}
