// A storm of short-lived threads, each of which writes once. Counts in the shared file as forks.c does. argv: counters file.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct counters { volatile long calls, eio, enospc, bad, pad[4]; };
static struct counters *all;
static int null;

static void *once(void *argument) {
    struct counters *c = argument;
    long rc = syscall(SYS_pwrite64, null, "x", 1, 0);
    __sync_fetch_and_add(&c->calls, 1);
    if (rc < 0) __sync_fetch_and_add(errno == EIO ? &c->eio : &c->bad, 1);
    return 0;
}

static void *storm(void *argument) {
    struct counters *c = argument;
    for (;;) {
        pthread_t t;
        if (pthread_create(&t, 0, once, c) || pthread_join(t, 0)) __sync_fetch_and_add(&c->bad, 1);
    }
    return 0;
}

int main(int argc, char **argv) {
    int fd = open(argv[1], O_RDWR);
    null = open("/dev/null", O_WRONLY);
    all = mmap(0, 4 * 64, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    pthread_t t;
    for (int i = 1; i < 4; i++) pthread_create(&t, 0, storm, &all[i]);
    storm(&all[0]);
    return argc;
}
