/* Pinned host memory: made here, or the program's own that it registers. */
#include "simulated.h"

#include <sys/mman.h>
#include <unistd.h>

static CUresult enter_host(struct context *context, enum kind kind, void *base, size_t size, unsigned flags)
{
    struct range range = {.base = (uintptr_t)base,
                          .size = size,
                          .kind = kind,
                          .gpu = context->device,
                          .access = CU_MEM_ACCESS_READ_WRITE,
                          .flags = flags,
                          .context = context};
    return space_insert(&range, NULL);
}

API(cuMemHostAlloc, void **out, size_t size, unsigned flags)
{
    ENTER_CONTEXT(context);
    if (!out || !size || flags > 7)
        return CUDA_ERROR_INVALID_VALUE;
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&memory_lock);
    CUresult result = enter_host(context, KIND_HOST, base, size, flags);
    pthread_mutex_unlock(&memory_lock);
    if (result)
        munmap(base, size);
    else
        *out = base;
    return result;
}

API(cuMemAllocHost_v2, void **out, size_t size) { return cuMemHostAlloc(out, size, 0); }

API(cuMemFreeHost, void *base)
{
    ENTER_CONTEXT(context);
    if (!base)
        return CUDA_SUCCESS;
    CUresult result = context_wait_idle(context);
    if (result)
        return result;
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find((uintptr_t)base);
    bool good = range && range->base == (uintptr_t)base && range->kind == KIND_HOST;
    if (good) {
        munmap(base, range->size);
        space_remove(range);
    }
    pthread_mutex_unlock(&memory_lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuMemHostRegister_v2, void *base, size_t size, unsigned flags)
{
    ENTER_CONTEXT(context);
    if (!base || !size || flags > 15)
        return CUDA_ERROR_INVALID_VALUE;
    /* It must be there: the driver pins it. */
    uintptr_t page = (uintptr_t)base & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
    if (msync((void *)page, (uintptr_t)base + size - page, MS_ASYNC))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    CUresult result = space_overlaps((uintptr_t)base, size) ? CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED
                                                            : enter_host(context, KIND_REGISTERED, base, size, flags);
    pthread_mutex_unlock(&memory_lock);
    return result;
}

API(cuMemHostUnregister, void *base)
{
    ENTER_CONTEXT(context);
    CUresult result = context_wait_idle(context);
    if (result)
        return result;
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find((uintptr_t)base);
    bool good = range && range->base == (uintptr_t)base && range->kind == KIND_REGISTERED;
    if (good)
        space_remove(range);
    pthread_mutex_unlock(&memory_lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

static CUresult look(const void *address, struct range *out)
{
    ENTER_CONTEXT(context);
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find((uintptr_t)address);
    bool good = range && (range->kind == KIND_HOST || range->kind == KIND_REGISTERED);
    if (good)
        *out = *range;
    pthread_mutex_unlock(&memory_lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuMemHostGetDevicePointer_v2, CUdeviceptr *out, void *address, unsigned flags)
{
    struct range range;
    CUresult result = out && !flags ? look(address, &range) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *out = (uintptr_t)address;
    return result;
}

API(cuMemHostGetFlags, unsigned *flags, void *address)
{
    struct range range;
    CUresult result = flags ? look(address, &range) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *flags = range.flags;
    return result;
}
