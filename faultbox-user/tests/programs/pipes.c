// Says what a write of a million bytes to a pipe gives that is read slowly, and what three reads of a pipe give that is written slowly.
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int from[2], to[2];

static void *read_late(void *arg) {
    static char buffer[4096];
    sleep(3);
    for (long left = 1000000; left > 0;) {
        long n = read(from[0], buffer, sizeof buffer);
        if (n < 0) continue;
        if (n == 0) break;
        left -= n;
    }
    return arg;
}

static void *write_late(void *arg) {
    for (int i = 0; i < 3; i++) {
        sleep(i ? 0 : 3);
        usleep(200000);
        if (write(to[1], "x", 1) != 1) break;
    }
    return arg;
}

static void *write_much(void *arg) {
    char *much = calloc(1, 1000000);
    printf("written %ld\n", (long)write(from[1], much, 1000000));
    return arg;
}

int main(void) {
    setvbuf(stdout, 0, _IONBF, 0);
    pthread_t threads[3];
    if (pipe(from) || pipe(to)) return 1;
    if (pthread_create(threads, 0, read_late, 0) || pthread_create(threads + 1, 0, write_late, 0) ||
        pthread_create(threads + 2, 0, write_much, 0))
        return 1;
    for (int i = 1; i <= 3; i++) {
        char byte;
        long n = read(to[0], &byte, 1);
        printf("read %d: %ld %d\n", i, n, n < 0 ? errno : 0);
    }
    pthread_join(threads[2], 0);
    puts("done");
    return 0;
}
