/* Preloaded into the server: makes fsync, fdatasync, syncfs and writes with O_DSYNC slow, stuck or failing. The calls
 * are trapped by seccomp, not by name, so that raw system calls are caught too.
 *
 * SHIM_DIR       directory of the switches:
 *   block        while this file exists, no sync returns
 *   delay        while this file exists, a sync takes 5 ms longer
 *   fail         the next sync fails with EIO, once; the file is removed
 *   failed       made by the shim when a sync was made to fail
 *   calls        one byte is added for each sync that succeeded
 * SHIM_FAIL_AT   the n-th sync of the process fails, once
 *
 * A sync that fails also loses what it should have written: the files are cut back to the length they had at
 * their last good sync. A write with O_DSYNC that fails writes nothing. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define MAGIC 0x706f7374u
#define FILES 4096

static char block_path[4096], delay_path[4096], fail_path[4096], failed_path[4096], calls_path[4096];
static long fail_at;
static atomic_long calls;
static atomic_flag lock = ATOMIC_FLAG_INIT;

static struct file {
    dev_t dev;
    ino_t ino;
    off_t synced;
    off_t now;
    char path[400];
} files[FILES];
static int known;

static void nap(long ms) {
    struct timespec time = {0, ms * 1000000};
    nanosleep(&time, NULL);
}

static void enter(void) {
    while (atomic_flag_test_and_set(&lock)) nap(1);
}

static void leave(void) { atomic_flag_clear(&lock); }

/* The entry of a regular file, made when it is new. */
static struct file *find(int fd) {
    struct stat stat;
    if (fstat(fd, &stat) != 0 || !S_ISREG(stat.st_mode)) return NULL;
    for (int at = 0; at < known; at++)
        if (files[at].dev == stat.st_dev && files[at].ino == stat.st_ino) return &files[at];
    if (known == FILES) return NULL;
    struct file *file = &files[known];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, file->path, sizeof file->path - 1);
    if (length < 0) return NULL;
    file->path[length] = 0;
    file->dev = stat.st_dev;
    file->ino = stat.st_ino;
    file->synced = -1;
    known++;
    return file;
}

static off_t length_of(const struct file *file) {
    struct stat stat;
    if (lstat(file->path, &stat) != 0 || stat.st_ino != file->ino) return -1;
    return stat.st_size;
}

static void lose(struct file *file) {
    if (file->synced >= 0 && length_of(file) > file->synced)
        if (truncate(file->path, file->synced) != 0) return;
}

/* A call that makes something durable, and its arguments. */
static long sync_call(long number, const long *args) {
    int fd = (int)args[0];
    long count = atomic_fetch_add(&calls, 1) + 1;
    while (access(block_path, F_OK) == 0) nap(1);
    if (access(delay_path, F_OK) == 0) nap(5);
    int all = number == SYS_syncfs;
    if (count == fail_at || unlink(fail_path) == 0) {
        enter();
        if (all) {
            for (int at = 0; at < known; at++) lose(&files[at]);
        } else {
            struct file *file = number == SYS_pwrite64 ? NULL : find(fd);
            if (file) lose(file);
        }
        leave();
        int marker = open(failed_path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
        if (marker >= 0) close(marker);
        return -EIO;
    }
    struct file *file = NULL;
    off_t length = -1;
    enter();
    if (all) {
        for (int at = 0; at < known; at++) files[at].now = length_of(&files[at]);
    } else {
        file = find(fd);
        if (file) length = length_of(file);
    }
    leave();
    long done = syscall(number, fd, args[1], args[2], args[3], 0, MAGIC);
    if (done < 0) return -errno;
    enter();
    /* It may be the write that made the file longer. */
    if (file && number == SYS_pwrite64) length = length_of(file);
    if (file && length > file->synced) file->synced = length;
    if (all)
        for (int at = 0; at < known; at++)
            if (files[at].now > files[at].synced) files[at].synced = files[at].now;
    leave();
    int log = open(calls_path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
    if (log >= 0) {
        if (write(log, ".", 1) != 1) abort();
        close(log);
    }
    return done;
}

static long call(long number, const long *args) {
    if (number == SYS_pwrite64 && !(fcntl((int)args[0], F_GETFL) & O_DSYNC)) {
        long done = syscall(number, args[0], args[1], args[2], args[3], 0, MAGIC);
        return done < 0 ? -errno : done;
    }
    return sync_call(number, args);
}

static void trapped(int signal, siginfo_t *info, void *context) {
    (void)signal;
    int saved = errno;
    ucontext_t *user = context;
#if defined(__x86_64__)
    greg_t *regs = user->uc_mcontext.gregs;
    long args[4] = {regs[REG_RDI], regs[REG_RSI], regs[REG_RDX], regs[REG_R10]};
    regs[REG_RAX] = call(info->si_syscall, args);
#elif defined(__aarch64__)
    unsigned long long *regs = user->uc_mcontext.regs;
    long args[4] = {regs[0], regs[1], regs[2], regs[3]};
    regs[0] = (unsigned long long)call(info->si_syscall, args);
#else
#error "the shim knows x86_64 and aarch64"
#endif
    errno = saved;
}

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("SHIM_DIR");
    if (!dir) return;
    snprintf(block_path, sizeof block_path, "%s/block", dir);
    snprintf(delay_path, sizeof delay_path, "%s/delay", dir);
    snprintf(fail_path, sizeof fail_path, "%s/fail", dir);
    snprintf(failed_path, sizeof failed_path, "%s/failed", dir);
    snprintf(calls_path, sizeof calls_path, "%s/calls", dir);
    const char *at = getenv("SHIM_FAIL_AT");
    fail_at = at ? atol(at) : -1;

    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = trapped;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fsync, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwrite64, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fdatasync, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_syncfs, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MAGIC, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    if (sigaction(SIGSYS, &action, NULL) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        fprintf(stderr, "shim: seccomp is not available: %s\n", strerror(errno));
        _exit(99);
    }
}
