// Threads that wait in the kernel, each for nine seconds or until something comes; prints how each wait ended.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void report(const char *what, double began, long rc) {
    int e = rc < 0 ? errno : 0;
    char line[128];
    int n = snprintf(line, sizeof line, "%s %ld %d %d\n", what, rc, e, (int)(now() - began));
    syscall(SYS_write, 1, line, n);
}

#define THREAD(name, ...) \
    static void *name(void *unused) { double began = now(); long rc; __VA_ARGS__; report(#name, began, rc); return unused; }

static int never[2], later[2], listener;
static int word;

THREAD(sleep_nano, struct timespec t = {9, 0}; rc = nanosleep(&t, 0))
THREAD(wait_futex, struct timespec t = {9, 0}; rc = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, 0, 0))
THREAD(wait_epoll, int e = epoll_create1(0); rc = epoll_wait(e, &(struct epoll_event){0}, 1, 9000); close(e))
THREAD(wait_poll, struct pollfd p = {never[0], POLLIN, 0}; rc = poll(&p, 1, 9000))
THREAD(wait_ppoll, struct pollfd p = {never[0], POLLIN, 0}; struct timespec t = {9, 0}; sigset_t m; sigfillset(&m); sigdelset(&m, SIGTERM); rc = ppoll(&p, 1, &t, &m))
THREAD(wait_select, fd_set s; FD_ZERO(&s); FD_SET(never[0], &s); struct timeval t = {9, 0}; rc = select(never[0] + 1, &s, 0, 0, &t))
THREAD(read_pipe, char c; rc = read(later[0], &c, 1))
THREAD(accept_one, rc = accept(listener, 0, 0); if (rc >= 0) rc = 1)
// A socket with a timeout is never restarted by the kernel (signal(7)); EINTR would be our doing.
THREAD(recv_timed, int s[2]; socketpair(AF_UNIX, SOCK_STREAM, 0, s); struct timeval t = {9, 0}; setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t); char c; rc = recv(s[0], &c, 1, 0))

int main(void) {
    pipe(never);
    pipe(later);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    bind(listener, (void *)&a, len);
    listen(listener, 5);
    getsockname(listener, (void *)&a, &len);
    void *(*all[])(void *) = {sleep_nano, wait_futex, wait_epoll, wait_poll, wait_ppoll, wait_select, read_pipe, accept_one, recv_timed};
    pthread_t t[9];
    for (int i = 0; i < 9; i++) pthread_create(&t[i], 0, all[i], 0);
    double began = now();
    while (now() - began < 9000) usleep(1000);
    write(later[1], "x", 1);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    connect(s, (void *)&a, len);
    for (int i = 0; i < 9; i++) pthread_join(t[i], 0);
    write(1, "done\n", 5);
    return 0;
}
