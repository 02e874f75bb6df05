/* Legacy IPC: cuIpcGetMemHandle and friends, for memory of cuMemAlloc alone. The handle names the exporting
 * process's socket and the place in its file; the importer fetches the descriptor there. */
#include "simulated.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAGIC 0x43504953U

struct handle {
    uint32_t magic;
    char name[20]; /* of the exporter's socket */
    uint64_t offset, size; /* of the physical memory in the exporter's file */
    uint32_t delta; /* of the allocation in it */
    uint32_t unused;
    CUuuid gpu;
};
_Static_assert(sizeof(struct handle) <= sizeof(CUipcMemHandle), "fits");

API(cuIpcGetMemHandle, CUipcMemHandle *out, CUdeviceptr address)
{
    ENTER_CONTEXT(context);
    struct handle handle = {.magic = MAGIC};
    char name[64];

    target_name(name, sizeof name);
    if (!out || strlen(name) >= sizeof handle.name)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(handle.name, name, strlen(name));
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find(address);
    bool good = range && range->kind == KIND_ALLOCATION && !range->pool;
    if (good) {
        struct physical *physical = range->slab ? range->slab->physical : range->physical;
        range->exported = true;
        handle.offset = (uint64_t)physical->offset;
        handle.size = physical->size;
        handle.delta = range->slab ? (uint32_t)(range->base - range->slab->base) : 0;
        handle.gpu = gpus[range->gpu].uuid;
    }
    pthread_mutex_unlock(&memory_lock);
    if (!good)
        return CUDA_ERROR_INVALID_VALUE;
    memset(out, 0, sizeof *out);
    memcpy(out, &handle, sizeof handle);
    return CUDA_SUCCESS;
}

/* Ask the exporter for the file. -1: it is gone, or freed that memory. */
static int fetch(const struct handle *handle)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct target_request request = {
        .magic = TARGET_MAGIC, .operation = TARGET_FETCH, .offset = handle->offset, .size = handle->size};
    struct target_answer reply;
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec piece = {&reply, sizeof reply};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    int descriptor = -1;

    request.pair[0].oldUuid = handle->gpu;
    if (snprintf(address.sun_path, sizeof address.sun_path, "%s/sockets/%.20s", gpus[0].path, handle->name) >=
        (int)sizeof address.sun_path)
        return -1;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (!connect(fd, (struct sockaddr *)&address, sizeof address) &&
        send(fd, &request, sizeof request, MSG_NOSIGNAL) == (ssize_t)sizeof request &&
        recvmsg(fd, &message, MSG_CMSG_CLOEXEC) == (ssize_t)sizeof reply && !reply.result) {
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        if (head && head->cmsg_type == SCM_RIGHTS)
            memcpy(&descriptor, CMSG_DATA(head), sizeof descriptor);
    }
    close(fd);
    return descriptor;
}

API(cuIpcOpenMemHandle_v2, CUdeviceptr *out, CUipcMemHandle bytes, unsigned flags)
{
    ENTER_CONTEXT(context);
    struct handle handle;
    struct physical *physical;
    char own[64];
    int gpu = 0;

    memcpy(&handle, &bytes, sizeof handle);
    if (!out || flags != 1 || handle.magic != MAGIC || !handle.size || handle.size % GRANULARITY ||
        handle.delta >= handle.size)
        return CUDA_ERROR_INVALID_VALUE;
    target_name(own, sizeof own);
    if (!strncmp(own, handle.name, sizeof handle.name))
        return CUDA_ERROR_INVALID_CONTEXT; /* not in the process it came from */
    while (gpu < gpu_count && memcmp(&gpus[gpu].uuid, &handle.gpu, sizeof handle.gpu))
        gpu++;
    int fd = gpu < gpu_count ? fetch(&handle) : -1;
    if (fd < 0)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    CUresult result = physical_adopt(gpu, ORIGIN_IPC, fd, (off_t)handle.offset, handle.size, &physical);
    if (!result) {
        uint64_t base = space_reserve(handle.size, 0, 0);
        struct range range = {.base = base + handle.delta,
                              .size = handle.size - handle.delta,
                              .kind = KIND_IPC,
                              .gpu = gpu,
                              .access = CU_MEM_ACCESS_READ_WRITE,
                              .physical = physical,
                              .context = context,
                              .map_base = base};
        result = base ? space_map(base, physical, CU_MEM_ACCESS_READ_WRITE) : CUDA_ERROR_OUT_OF_MEMORY;
        if (!result)
            result = space_insert(&range, NULL);
        if (result) {
            if (base)
                space_release(base, handle.size);
            physical_put(physical);
        } else {
            *out = range.base;
        }
    }
    pthread_mutex_unlock(&memory_lock);
    return result;
}
ALIAS(cuIpcOpenMemHandle_v2, cuIpcOpenMemHandle, CUdeviceptr *out, CUipcMemHandle bytes, unsigned flags);

API(cuIpcCloseMemHandle, CUdeviceptr address)
{
    ENTER_CONTEXT(context);
    CUresult result = context_wait_idle(context);
    if (result)
        return result;
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find(address);
    bool good = range && range->kind == KIND_IPC && range->base == address;
    if (good) {
        space_release(range->map_base, range->physical->size);
        physical_put(range->physical);
        space_remove(range);
    }
    pthread_mutex_unlock(&memory_lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
