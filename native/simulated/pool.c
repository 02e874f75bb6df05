/* Memory pools: cuMemAllocAsync and cuMemFreeAsync. Memory is taken at the call and goes back to the device
 * when the free's turn in its stream comes; a pool keeps nothing, whatever its release threshold. */
#include "simulated.h"

#include <stdlib.h>
#include <string.h>

static struct pool *list;

void pool_account(struct pool *pool, int64_t bytes)
{
    if (!pool)
        return;
    pool->used += (uint64_t)bytes;
    if (pool->used > pool->used_high)
        pool->used_high = pool->used;
}

/* Under memory_lock. */
static struct pool *make(int gpu, bool custom)
{
    struct pool *pool = calloc(1, sizeof *pool);
    if (pool) {
        *pool = (struct pool){.next = list, .gpu = gpu, .custom = custom};
        list = pool;
    }
    return pool;
}

static bool known(const struct pool *pool)
{
    for (const struct pool *p = list; p; p = p->next)
        if (p == pool)
            return true;
    return false;
}

static struct pool *default_of(int gpu)
{
    if (!gpus[gpu].pool)
        gpus[gpu].pool = make(gpu, false);
    return gpus[gpu].pool;
}

static CUresult pool_of_device(CUmemoryPool *out, CUdevice device, bool current)
{
    ENTER();
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&memory_lock);
    *out = current && gpus[device].current ? gpus[device].current : default_of(device);
    pthread_mutex_unlock(&memory_lock);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API(cuDeviceGetDefaultMemPool, CUmemoryPool *out, CUdevice device) { return pool_of_device(out, device, false); }
API(cuDeviceGetMemPool, CUmemoryPool *out, CUdevice device) { return pool_of_device(out, device, true); }

API(cuDeviceSetMemPool, CUdevice device, CUmemoryPool pool)
{
    ENTER();
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&memory_lock);
    bool good = known(pool);
    if (good)
        gpus[device].current = pool;
    pthread_mutex_unlock(&memory_lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuMemPoolCreate, CUmemoryPool *out, const CUmemPoolProps *properties)
{
    ENTER();
    if (!out || !properties || properties->allocType != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    if (properties->handleTypes || properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!gpu_valid(properties->location.id))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&memory_lock);
    *out = make(properties->location.id, true);
    pthread_mutex_unlock(&memory_lock);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API(cuMemPoolDestroy, CUmemoryPool pool)
{
    ENTER();
    pthread_mutex_lock(&memory_lock);
    bool good = known(pool) && pool->custom;
    for (struct pool **link = &list; good && *link; link = &(*link)->next)
        if (*link == pool) {
            *link = pool->next;
            break;
        }
    if (good) {
        for (size_t i = 0; i < space_count; i++)
            if (space_ranges[i]->pool == pool)
                space_ranges[i]->pool = NULL;
        if (gpus[pool->gpu].current == pool)
            gpus[pool->gpu].current = NULL;
        free(pool);
    }
    pthread_mutex_unlock(&memory_lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuMemPoolTrimTo, CUmemoryPool pool, size_t keep)
{
    ENTER();
    (void)keep;
    pthread_mutex_lock(&memory_lock);
    bool good = known(pool);
    pthread_mutex_unlock(&memory_lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Attributes 1 to 3 are ints (reuse policies, of no effect), the rest 64 bits wide. */
static CUresult attribute(CUmemoryPool pool, int which, void *value, bool write)
{
    ENTER();
    CUresult result = CUDA_SUCCESS;
    if (!value || which < 1 || which > CU_MEMPOOL_ATTR_USED_MEM_HIGH)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    uint64_t *field = NULL;
    if (!known(pool))
        result = CUDA_ERROR_INVALID_VALUE;
    else if (which == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
        field = &pool->threshold;
    else if (which == CU_MEMPOOL_ATTR_USED_MEM_CURRENT || which == CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
        field = &pool->used;
    else if (which == CU_MEMPOOL_ATTR_USED_MEM_HIGH || which == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH)
        field = &pool->used_high;
    if (!result && !field && !write)
        *(int *)value = 1;
    if (field && !write)
        *(uint64_t *)value = *field;
    if (field && write) {
        if (field == &pool->threshold)
            *field = *(uint64_t *)value;
        else if (field == &pool->used_high && *(uint64_t *)value == 0)
            *field = pool->used;
        else
            result = CUDA_ERROR_INVALID_VALUE;
    }
    pthread_mutex_unlock(&memory_lock);
    return result;
}

API(cuMemPoolGetAttribute, CUmemoryPool pool, int which, void *value) { return attribute(pool, which, value, false); }
API(cuMemPoolSetAttribute, CUmemoryPool pool, int which, void *value) { return attribute(pool, which, value, true); }

API(cuMemPoolSetAccess, CUmemoryPool pool, const CUmemAccessDesc *descriptions, size_t count)
{
    ENTER();
    (void)pool;
    return count && !descriptions ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

API(cuMemPoolGetAccess, int *flags, CUmemoryPool pool, CUmemLocation *location)
{
    ENTER();
    if (!flags || !pool || !location)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = location->id == pool->gpu ? CU_MEM_ACCESS_READ_WRITE : CU_MEM_ACCESS_NONE;
    return CUDA_SUCCESS;
}

API(cuMemPoolExportToShareableHandle, void *out, CUmemoryPool pool, int type, unsigned long long flags)
{
    ENTER();
    (void)out;
    (void)pool;
    (void)type;
    (void)flags;
    return CUDA_ERROR_NOT_SUPPORTED;
}

static CUresult allocate(CUdeviceptr *out, size_t size, CUmemoryPool pool, CUstream handle)
{
    ENTER_CONTEXT(context);
    struct stream *stream;
    if (!out || !size)
        return CUDA_ERROR_INVALID_VALUE;
    if (size > (size_t)1 << 46)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&memory_lock);
    if (!pool)
        pool = gpus[context->device].current ? gpus[context->device].current : default_of(context->device);
    pthread_mutex_lock(&queue_lock);
    CUresult result = stream_resolve(context, handle, &stream);
    if (!result && stream->capture) /* memory nodes aren't simulated */
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    pthread_mutex_unlock(&queue_lock);
    if (!result && !known(pool))
        result = CUDA_ERROR_INVALID_VALUE;
    if (!result)
        result = memory_allocate(context, pool, size, out);
    pthread_mutex_unlock(&memory_lock);
    return result;
}

API(cuMemAllocAsync, CUdeviceptr *out, size_t size, CUstream stream) { return allocate(out, size, NULL, stream); }

API(cuMemAllocFromPoolAsync, CUdeviceptr *out, size_t size, CUmemoryPool pool, CUstream stream)
{
    return pool ? allocate(out, size, pool, stream) : CUDA_ERROR_INVALID_VALUE;
}

API(cuMemFreeAsync, CUdeviceptr address, CUstream stream)
{
    ENTER_CONTEXT(context);
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find(address);
    bool good = range && range->base == address && range->kind == KIND_ALLOCATION;
    pthread_mutex_unlock(&memory_lock);
    if (!good)
        return CUDA_ERROR_INVALID_VALUE;
    struct work work = {.kind = WORK_FREE, .context = context};
    work.u.address = address;
    return stream_submit(stream, &work, WAIT_NOT);
}
