// A process whose first thread has ended, and whose second says what getrandom gives.
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/random.h>
#include <unistd.h>

static void *work(void *arg) {
    for (;;) {
        char byte;
        printf("%d\n", getrandom(&byte, 1, 0) == 1 ? 0 : errno);
        usleep(20000);
    }
    return arg;
}

int main(void) {
    setvbuf(stdout, 0, _IONBF, 0);
    pthread_t thread;
    if (pthread_create(&thread, 0, work, 0)) return 1;
    pthread_exit(0);
}
