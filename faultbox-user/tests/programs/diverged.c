// Threads with seccomp filters of their own, which the kernel therefore does not give a common one; the first waits in epoll_wait, and
// says what fsync gives when SIGUSR1 wakes it.
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *sandboxed(void *arg) {
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &allow};
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) return arg;
    printf("up\n");
    for (;;) pause();
}

int main(void) {
    setvbuf(stdout, 0, _IONBF, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return 1;
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    if (pthread_sigmask(SIG_BLOCK, &signals, 0)) return 1;
    pthread_t thread;
    for (int i = 0; i < 2; i++)
        if (pthread_create(&thread, 0, sandboxed, 0)) return 1;
    int events = epoll_create1(0);
    struct epoll_event wanted = {.events = EPOLLIN}, got;
    if (epoll_ctl(events, EPOLL_CTL_ADD, signalfd(-1, &signals, 0), &wanted)) return 1;
    int woken = epoll_wait(events, &got, 1, -1);
    int failed = fsync(1);
    printf("woken %d fsync %d errno %d\n", woken, failed, failed ? errno : 0);
    return 0;
}
