/* The thread that serves checkpoint requests: in every process that called cuInit, like the real driver's.
 *
 * It listens on GPU/sockets/NAMESPACE-PID, where NAMESPACE is the inode of the process's pid namespace and
 * PID the process's id in it: both can be told from outside. While checkpointed it holds nothing of the GPU, and
 * listens on an abstract socket of that name in its network namespace instead, like the real driver; there it looks a
 * few times a second whether it has been moved into another pid namespace (by a dump and restore).
 */
#include "simulated.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define MOVED_CHECK_MS 50
#define CLIENT_TIMEOUT_S 2

static int listener = -1;
static pid_t owner;
static char bound[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* empty while checkpointed */
static char home[PATH_BYTES];
static char away[64];                                           /* name of the abstract socket then */
static int state = CU_PROCESS_STATE_RUNNING; /* of the serving thread alone */

/* The name under which this process is to be found. */
void target_name(char *out, size_t size)
{
    struct stat status;
    unsigned long long space = stat("/proc/self/ns/pid", &status) ? 0 : (unsigned long long)status.st_ino;
    snprintf(out, size, "%llu-%d", space, (int)getpid());
}

/* Sockets of processes of our own namespace that are gone. */
static void sweep(const char *directory)
{
    char mine[64], path[PATH_BYTES];
    target_name(mine, sizeof mine);
    size_t prefix = strcspn(mine, "-") + 1;
    DIR *entries = opendir(directory);
    if (!entries)
        return;
    for (struct dirent *entry; (entry = readdir(entries));) {
        int pid = strncmp(entry->d_name, mine, prefix) ? 0 : atoi(entry->d_name + prefix);
        if (pid > 0 && kill(pid, 0) && errno == ESRCH &&
            snprintf(path, sizeof path, "%s/%s", directory, entry->d_name) < (int)sizeof path)
            unlink(path);
    }
    closedir(entries);
}

/* Take a new socket, bound and listening, in place of the present one. */
static CUresult listen_at(const struct sockaddr_un *address, socklen_t size)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    if (fd <= 2) {
        int high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        close(fd);
        fd = high;
    }
    if (bind(fd, (const struct sockaddr *)address, size) || listen(fd, 16)) {
        close(fd);
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    if (listener >= 0)
        close(listener);
    if (*bound && strcmp(bound, address->sun_path))
        unlink(bound);
    listener = fd;
    memcpy(bound, address->sun_path, sizeof bound);
    return CUDA_SUCCESS;
}

/* The name of a process's abstract socket, and its length as an address. */
socklen_t target_abstract(const char *name, struct sockaddr_un *address)
{
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    int length = snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "kybernate-simulated/%s", name);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

static CUresult listen_away(void)
{
    struct sockaddr_un address;
    target_name(away, sizeof away);
    return listen_at(&address, target_abstract(away, &address));
}

static CUresult listen_here(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char name[64], directory[PATH_BYTES + 16];

    /* Where it always was: a restore may have put it on another GPU, of which its callers need not know. */
    if (!*home)
        memcpy(home, gpus[0].path, sizeof home);
    snprintf(directory, sizeof directory, "%s/sockets", home);
    if (!mkdir(directory, 0777))
        chmod(directory, 01777);
    sweep(directory);
    target_name(name, sizeof name);
    if (snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", directory, name) >= (int)sizeof address.sun_path)
        return CUDA_ERROR_OPERATING_SYSTEM;
    unlink(address.sun_path);
    return listen_at(&address, sizeof address);
}

static void follow_move(void)
{
    char name[64];
    target_name(name, sizeof name);
    if (strcmp(away, name))
        listen_away(); /* on failure: tried again at the next tick */
}

static bool allowed(int client)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return !getsockopt(client, SOL_SOCKET, SO_PEERCRED, &peer, &size) && (peer.uid == 0 || peer.uid == geteuid());
}

static bool answer(int client, CUresult result, int descriptor)
{
    struct target_answer reply = {TARGET_MAGIC, result, state, (int32_t)syscall(SYS_gettid)};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec piece = {&reply, sizeof reply};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (descriptor >= 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &descriptor, sizeof descriptor);
    }
    return sendmsg(client, &message, MSG_NOSIGNAL) == (ssize_t)sizeof reply;
}

static bool receive(int client, struct target_request *request)
{
    struct timeval patience = {.tv_sec = CLIENT_TIMEOUT_S};
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return allowed(client) && recv(client, request, sizeof *request, 0) == (ssize_t)sizeof *request &&
           request->magic == TARGET_MAGIC && request->pairs <= GPUS_MAX;
}

/* While a lock is pending: does its caller still wait? Others who ask meanwhile learn the state. */
static bool lock_wanted(void *argument)
{
    int client = *(int *)argument;
    struct pollfd polled[2] = {{client, POLLRDHUP, 0}, {listener, POLLIN, 0}};

    if (poll(polled, 2, 0) > 0) {
        if (polled[0].revents)
            return false;
        int other = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        struct target_request request;
        if (other >= 0) {
            if (receive(other, &request))
                answer(other, request.operation == TARGET_STATE ? CUDA_SUCCESS : CUDA_ERROR_ILLEGAL_STATE, -1);
            close(other);
        }
    }
    return true;
}

static void serve_lock(int client, const struct target_request *request)
{
    if (state != CU_PROCESS_STATE_RUNNING) {
        answer(client, CUDA_ERROR_ILLEGAL_STATE, -1);
        return;
    }
    if (!gate_close((int)request->timeout_ms, lock_wanted, &client)) {
        answer(client, CUDA_ERROR_NOT_READY, -1);
        return;
    }
    state = CU_PROCESS_STATE_LOCKED;
    if (!answer(client, CUDA_SUCCESS, -1)) { /* who asked is gone and will never unlock */
        state = CU_PROCESS_STATE_RUNNING;
        gate_open();
    }
}

/* The file behind memory that was given out by cuIpcGetMemHandle. */
static void serve_fetch(int client, const struct target_request *request)
{
    int found = -1;
    pthread_mutex_lock(&memory_lock);
    for (size_t i = 0; i < space_count && found < 0; i++) {
        const struct range *range = space_ranges[i];
        const struct physical *physical = range->slab ? range->slab->physical : range->physical;
        if (range->exported && physical->placed && (uint64_t)physical->offset == request->offset &&
            physical->size == request->size &&
            !memcmp(&request->pair[0].oldUuid, &gpus[physical->gpu].uuid, sizeof(CUuuid)))
            found = physical_descriptor(physical);
    }
    answer(client, found >= 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE, found);
    pthread_mutex_unlock(&memory_lock);
}

static void serve(int client)
{
    struct target_request request;
    CUresult result = CUDA_ERROR_ILLEGAL_STATE;

    if (!receive(client, &request))
        return;
    switch (request.operation) {
    case TARGET_STATE:
        result = CUDA_SUCCESS;
        break;
    case TARGET_LOCK:
        serve_lock(client, &request);
        return;
    case TARGET_CHECKPOINT:
        if (state == CU_PROCESS_STATE_LOCKED && !(result = image_save())) {
            state = CU_PROCESS_STATE_CHECKPOINTED;
            listen_away();
        }
        break;
    case TARGET_RESTORE:
        if (state == CU_PROCESS_STATE_CHECKPOINTED) {
            result = image_restore(request.pair, request.pairs);
            if (!result) {
                state = CU_PROCESS_STATE_LOCKED;
                listen_here();
            } else if (image_lost()) {
                state = CU_PROCESS_STATE_FAILED;
            }
        }
        break;
    case TARGET_UNLOCK:
        if (state == CU_PROCESS_STATE_LOCKED) {
            state = CU_PROCESS_STATE_RUNNING;
            gate_open();
            result = CUDA_SUCCESS;
        }
        break;
    case TARGET_FETCH:
        serve_fetch(client, &request);
        return;
    default:
        result = CUDA_ERROR_INVALID_VALUE;
    }
    answer(client, result, -1);
}

static void *run(void *argument)
{
    (void)argument;
    for (;;) {
        struct pollfd polled = {listener, POLLIN, 0};
        int ready = poll(&polled, 1, state == CU_PROCESS_STATE_CHECKPOINTED ? MOVED_CHECK_MS : -1);
        if (state == CU_PROCESS_STATE_CHECKPOINTED && ready == 0)
            follow_move();
        if (ready <= 0)
            continue;
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0)
            continue;
        serve(client);
        close(client);
    }
    return NULL;
}

CUresult target_start(void)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;

    CUresult result = listen_here();
    if (result)
        return result;
    owner = getpid();
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, &attributes, run, NULL);
    if (!error)
        pthread_setname_np(thread, "cuda-restore");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
}

void target_after_fork(void)
{
    if (listener >= 0)
        close(listener);
    listener = -1;
    owner = 0;
}

__attribute__((destructor)) static void leave(void)
{
    if (owner && owner == getpid() && *bound)
        unlink(bound);
}
