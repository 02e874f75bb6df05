/* Managed memory: host memory at a device address, of no GPU in particular; it never counts as VRAM here.
 * A process that has any can't be checkpointed. */
#include "simulated.h"

#include <sys/mman.h>

API(cuMemAllocManaged, CUdeviceptr *out, size_t size, unsigned flags)
{
    ENTER_CONTEXT(context);
    if (!out || !size || (flags != 1 && flags != 2))
        return CUDA_ERROR_INVALID_VALUE;
    size_t span = round_up(size, GRANULARITY);
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&memory_lock);
    uint64_t base = size < (size_t)1 << 46 ? space_reserve(span, 0, 0) : 0;
    if (base) {
        struct range range = {.base = base,
                              .size = size,
                              .kind = KIND_MANAGED,
                              .gpu = context->device,
                              .access = CU_MEM_ACCESS_READ_WRITE,
                              .flags = flags,
                              .context = context};
        result = space_protect(base, span, CU_MEM_ACCESS_READ_WRITE);
        if (!result)
            result = space_insert(&range, NULL);
        if (result)
            space_release(base, span);
    }
    pthread_mutex_unlock(&memory_lock);
    if (!result)
        *out = base;
    return result;
}

static CUresult hint(CUdeviceptr address, size_t size)
{
    ENTER_CONTEXT(context);
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find(address);
    bool good = range && range->kind == KIND_MANAGED && size <= range->base + range->size - address;
    pthread_mutex_unlock(&memory_lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuMemPrefetchAsync, CUdeviceptr address, size_t size, CUdevice device, CUstream stream)
{
    (void)device;
    (void)stream;
    return hint(address, size);
}

API(cuMemPrefetchAsync_v2, CUdeviceptr address, size_t size, CUmemLocation location, unsigned flags, CUstream stream)
{
    (void)location;
    (void)flags;
    (void)stream;
    return hint(address, size);
}

API(cuMemAdvise, CUdeviceptr address, size_t size, int advice, CUdevice device)
{
    (void)advice;
    (void)device;
    return hint(address, size);
}

API(cuMemAdvise_v2, CUdeviceptr address, size_t size, int advice, CUmemLocation location)
{
    (void)advice;
    (void)location;
    return hint(address, size);
}
