/* The caller's side of a checkpoint: finds the other process's serving thread by its host pid and asks it.
 * Works across pid, mount and network namespaces; the caller must be root or the same user. */
#include "simulated.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define FIND_TRIES 50       /* times 10 ms: a process that CRIU has just restored */
#define LOCK_GRACE_MS 5000  /* a frozen process can't even answer that it isn't ready */

/* The last number of the line NSpid: the id in the innermost namespace. 0: no such process. */
static int innermost(const char *path)
{
    char line[512];
    int inner = 0;
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "NSpid:", 6)) {
            char *save = NULL;
            for (char *word = strtok_r(line + 6, " \t\n", &save); word; word = strtok_r(NULL, " \t\n", &save))
                inner = atoi(word);
        }
    if (file)
        fclose(file);
    return inner;
}

/* Whether the process has a serving thread; if `inner` isn't 0, the host's id of the thread it knows by that. */
static int serving_thread(int pid, int inner)
{
    char path[64 + NAME_MAX], name[32];
    int found = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *entries = opendir(path);
    for (struct dirent *entry; entries && !found && (entry = readdir(entries));) {
        if (entry->d_name[0] == '.')
            continue;
        if (inner) {
            snprintf(path, sizeof path, "/proc/%d/task/%s/status", pid, entry->d_name);
            if (innermost(path) == inner)
                found = atoi(entry->d_name);
            continue;
        }
        snprintf(path, sizeof path, "/proc/%d/task/%s/comm", pid, entry->d_name);
        FILE *file = fopen(path, "re");
        if (file && fgets(name, sizeof name, file) && !strcmp(name, "cuda-restore\n"))
            found = atoi(entry->d_name);
        if (file)
            fclose(file);
    }
    if (entries)
        closedir(entries);
    return found;
}

static int connect_in(const char *directory, const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = -1, directory_fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);

    if (directory_fd < 0)
        return -1;
    snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%s", directory_fd, name);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address)) {
        close(fd);
        fd = -1;
    }
    close(directory_fd);
    return fd;
}

/* Look in our own GPUs' directories, then in the same paths as the process sees them. */
static int connect_somewhere(int pid, const char *name)
{
    const char *list = getenv("KYBERNATE_SIMULATED_GPU");
    while (list && *list) {
        int length = (int)strcspn(list, ":");
        char directory[PATH_BYTES + 64];
        if (length && length < PATH_BYTES) {
            snprintf(directory, sizeof directory, "%.*s/sockets", length, list);
            int fd = connect_in(directory, name);
            if (fd < 0) {
                snprintf(directory, sizeof directory, "/proc/%d/root/%.*s/sockets", pid, length, list);
                fd = connect_in(directory, name);
            }
            if (fd >= 0)
                return fd;
        }
        list += length;
        if (*list)
            list++;
    }
    return -1;
}

struct visit {
    int network; /* of the process, or -1: ours */
    const char *name;
    int fd;
};

static void *connect_away(void *argument)
{
    struct visit *visit = argument;
    struct sockaddr_un address;
    socklen_t size = target_abstract(visit->name, &address);

    if (visit->network >= 0 && setns(visit->network, CLONE_NEWNET))
        return NULL;
    visit->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (visit->fd >= 0 && connect(visit->fd, (struct sockaddr *)&address, size)) {
        close(visit->fd);
        visit->fd = -1;
    }
    return NULL;
}

/* A checkpointed process: its abstract socket belongs to its network namespace, into which a thread of ours goes. */
static int connect_checkpointed(int pid, const char *name)
{
    char path[64];
    struct stat ours, theirs;
    struct visit visit = {.network = -1, .name = name, .fd = -1};
    pthread_t thread;

    snprintf(path, sizeof path, "/proc/%d/ns/net", pid);
    if (stat("/proc/self/ns/net", &ours) || stat(path, &theirs))
        return -1;
    if (ours.st_ino == theirs.st_ino && ours.st_dev == theirs.st_dev) {
        connect_away(&visit);
        return visit.fd;
    }
    visit.network = open(path, O_RDONLY | O_CLOEXEC);
    if (visit.network < 0)
        return -1;
    if (!pthread_create(&thread, NULL, connect_away, &visit))
        pthread_join(thread, NULL);
    close(visit.network);
    return visit.fd;
}

/* A connection to the process, or -1: it is no process that has initialised CUDA. */
static int reach(int pid)
{
    const struct timespec moment = {.tv_nsec = 10000000};
    for (int try = 0; try < FIND_TRIES; try++) {
        char path[64], name[64];
        struct stat space;
        snprintf(path, sizeof path, "/proc/%d/status", pid);
        int inner = innermost(path);
        snprintf(path, sizeof path, "/proc/%d/ns/pid", pid);
        if (!inner || stat(path, &space) || !serving_thread(pid, 0))
            return -1;
        snprintf(name, sizeof name, "%llu-%d", (unsigned long long)space.st_ino, inner);
        int fd = connect_somewhere(pid, name);
        if (fd < 0)
            fd = connect_checkpointed(pid, name);
        if (fd >= 0)
            return fd;
        nanosleep(&moment, NULL);
    }
    return -1;
}

/* One try. `heard`: the process answered; it may have moved to another socket before it saw us. */
static CUresult ask_once(int pid, const struct target_request *request, int timeout_ms, struct target_answer *reply,
                         bool *heard)
{
    *heard = true;
    int fd = reach(pid);
    if (fd < 0)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_ERROR_OPERATING_SYSTEM;
    struct pollfd polled = {fd, POLLIN, 0};
    *heard = false;
    if (send(fd, request, sizeof *request, MSG_NOSIGNAL) == (ssize_t)sizeof *request) {
        int ready;
        while ((ready = poll(&polled, 1, timeout_ms)) < 0 && errno == EINTR) {
        }
        *heard = ready == 0;
        if (ready == 0)
            result = CUDA_ERROR_NOT_READY;
        else if (recv(fd, reply, sizeof *reply, 0) == (ssize_t)sizeof *reply && reply->magic == TARGET_MAGIC) {
            result = (CUresult)reply->result;
            *heard = true;
        }
    }
    close(fd);
    return result;
}

static CUresult ask(int pid, const struct target_request *request, int timeout_ms, struct target_answer *reply)
{
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    bool heard = pid <= 0;
    /* Only a question can be put twice: nobody knows whether an order without an answer was carried out. */
    for (int try = 0; !heard && try < (request->operation == TARGET_STATE ? 3 : 1); try++)
        result = ask_once(pid, request, timeout_ms, reply, &heard);
    return result;
}

static struct target_request request_of(enum target_operation operation)
{
    return (struct target_request){.magic = TARGET_MAGIC, .operation = operation};
}

API(cuCheckpointProcessGetState, int pid, int *state)
{
    struct target_request request = request_of(TARGET_STATE);
    struct target_answer reply;
    CUresult result = state ? ask(pid, &request, -1, &reply) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *state = reply.state;
    return result;
}

API(cuCheckpointProcessGetRestoreThreadId, int pid, int *thread)
{
    struct target_request request = request_of(TARGET_STATE);
    struct target_answer reply;
    CUresult result = thread ? ask(pid, &request, -1, &reply) : CUDA_ERROR_INVALID_VALUE;
    if (!result) {
        *thread = serving_thread(pid, reply.thread);
        result = *thread ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    }
    return result;
}

API(cuCheckpointProcessLock, int pid, CUcheckpointLockArgs *arguments)
{
    struct target_request request = request_of(TARGET_LOCK);
    struct target_answer reply;
    request.timeout_ms = arguments ? arguments->timeoutMs : 0;
    if (request.timeout_ms > 0x7fffffffU - LOCK_GRACE_MS)
        return CUDA_ERROR_INVALID_VALUE;
    return ask(pid, &request, request.timeout_ms ? (int)request.timeout_ms + LOCK_GRACE_MS : -1, &reply);
}

API(cuCheckpointProcessCheckpoint, int pid, void *arguments)
{
    struct target_request request = request_of(TARGET_CHECKPOINT);
    struct target_answer reply;
    (void)arguments;
    return ask(pid, &request, -1, &reply);
}

API(cuCheckpointProcessRestore, int pid, CUcheckpointRestoreArgs *arguments)
{
    struct target_request request = request_of(TARGET_RESTORE);
    struct target_answer reply;
    if (arguments && arguments->gpuPairsCount) {
        if (!arguments->gpuPairs || arguments->gpuPairsCount > GPUS_MAX)
            return CUDA_ERROR_INVALID_VALUE;
        request.pairs = arguments->gpuPairsCount;
        memcpy(request.pair, arguments->gpuPairs, request.pairs * sizeof *request.pair);
    }
    return ask(pid, &request, -1, &reply);
}

API(cuCheckpointProcessUnlock, int pid, void *arguments)
{
    struct target_request request = request_of(TARGET_UNLOCK);
    struct target_answer reply;
    (void)arguments;
    return ask(pid, &request, -1, &reply);
}
