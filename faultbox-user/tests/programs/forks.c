// A storm of short-lived processes and vforks. Every process writes to /dev/null; the outcome of the last of each kind is
// kept in the shared file: calls, EIO, other failures. argv: counters file.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct counters { volatile long calls, eio, enospc, bad, pad[4]; };
static struct counters *all;
extern char **environ;

static void once(struct counters *c) {
    int fd = open("/dev/null", O_WRONLY);
    long rc = syscall(SYS_pwrite64, fd, "x", 1, 0);
    __sync_fetch_and_add(&c->calls, 1);
    if (rc < 0) __sync_fetch_and_add(errno == EIO ? &c->eio : &c->bad, 1);
    close(fd);
}

static void storm(struct counters *c) {
    for (;;) {
        pid_t p = fork();
        if (p == 0) {
            if (fork() == 0) { once(c); _exit(0); }
            once(c);
            while (wait(0) > 0) {}
            _exit(0);
        }
        if (p < 0) __sync_fetch_and_add(&c->bad, 1);
        once(c);
        if (waitpid(p, 0, 0) != p) __sync_fetch_and_add(&c->bad, 1);
    }
}

static void *spawner(void *argument) {
    struct counters *c = argument;
    char *argv[] = {"true", 0};
    for (;;) {
        pid_t p;
        int status = -1;
        if (posix_spawn(&p, "/bin/true", 0, 0, argv, environ)) __sync_fetch_and_add(&c->bad, 1);
        else if (waitpid(p, &status, 0) != p || status != 0) __sync_fetch_and_add(&c->bad, 1);
        once(c);
    }
    return 0;
}

int main(int argc, char **argv) {
    int fd = open(argv[1], O_RDWR);
    all = mmap(0, 192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    pthread_t t;
    if (fork() == 0) storm(&all[0]);
    if (fork() == 0) storm(&all[1]);
    pthread_create(&t, 0, spawner, &all[2]);
    pthread_join(t, 0);
    return argc;
}
