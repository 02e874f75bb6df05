/* Native allocations: cuMemAlloc and its relatives. Small ones share slabs of 2 MiB, as on the real driver. */
#include "simulated.h"

#include <stdlib.h>

#define GRANULE 512 /* bytes */
#define SLAB_GRANULES (GRANULARITY / GRANULE)
#define SLAB_LIMIT ((size_t)1 << 20) /* bytes; from here on an allocation has its own physical memory */

_Static_assert(SLAB_GRANULES == 64 * 64, "one bit a granule");

struct slab *slab_list;

static bool bit(const struct slab *slab, size_t i) { return slab->bits[i / 64] >> (i % 64) & 1; }

static void set_bits(struct slab *slab, size_t first, size_t count, bool on)
{
    for (size_t i = first; i < first + count; i++) {
        if (on)
            slab->bits[i / 64] |= UINT64_C(1) << (i % 64);
        else
            slab->bits[i / 64] &= ~(UINT64_C(1) << (i % 64));
    }
    slab->used = on ? slab->used + (unsigned)count : slab->used - (unsigned)count;
}

/* First run of `count` free granules, or SLAB_GRANULES. */
static size_t find_run(const struct slab *slab, size_t count)
{
    size_t run = 0;
    if (SLAB_GRANULES - slab->used < count)
        return SLAB_GRANULES;
    for (size_t i = 0; i < SLAB_GRANULES; i++) {
        run = bit(slab, i) ? 0 : run + 1;
        if (run == count)
            return i + 1 - count;
    }
    return SLAB_GRANULES;
}

/* Physical memory, mapped and accessible at an address of its own. */
static CUresult back(int gpu, size_t size, uint64_t *base, struct physical **physical)
{
    CUresult result = physical_create(gpu, ORIGIN_NATIVE, size, physical);
    if (result)
        return result;
    *base = space_reserve(size, 0, 0);
    if (!*base) {
        physical_put(*physical);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    result = space_map(*base, *physical, CU_MEM_ACCESS_READ_WRITE);
    if (result) {
        space_release(*base, size);
        physical_put(*physical);
    }
    return result;
}

static CUresult slab_take(int gpu, size_t size, struct slab **out, uint64_t *base)
{
    size_t count = round_up(size, GRANULE) / GRANULE;
    struct slab *slab;
    size_t at = SLAB_GRANULES;

    for (slab = slab_list; slab; slab = slab->next)
        if (slab->gpu == gpu && (at = find_run(slab, count)) < SLAB_GRANULES)
            break;
    if (!slab) {
        slab = calloc(1, sizeof *slab);
        if (!slab)
            return CUDA_ERROR_OUT_OF_MEMORY;
        slab->gpu = gpu;
        CUresult result = back(gpu, GRANULARITY, &slab->base, &slab->physical);
        if (result) {
            free(slab);
            return result;
        }
        slab->next = slab_list;
        slab_list = slab;
        at = 0;
    }
    set_bits(slab, at, count, true);
    *out = slab;
    *base = slab->base + at * GRANULE;
    return CUDA_SUCCESS;
}

static void slab_give(struct slab *slab, uint64_t base, size_t size)
{
    set_bits(slab, (base - slab->base) / GRANULE, round_up(size, GRANULE) / GRANULE, false);
    if (slab->used)
        return;
    struct slab **link = &slab_list;
    while (*link != slab)
        link = &(*link)->next;
    *link = slab->next;
    space_release(slab->base, GRANULARITY);
    physical_put(slab->physical);
    free(slab);
}

/* Under memory_lock. */
CUresult memory_allocate(struct context *context, struct pool *pool, size_t size, CUdeviceptr *out)
{
    struct range range = {.size = size,
                          .kind = KIND_ALLOCATION,
                          .gpu = pool ? pool->gpu : context->device,
                          .access = CU_MEM_ACCESS_READ_WRITE,
                          .context = context,
                          .pool = pool};
    CUresult result = size < SLAB_LIMIT ? slab_take(range.gpu, size, &range.slab, &range.base)
                                        : back(range.gpu, round_up(size, GRANULARITY), &range.base, &range.physical);
    if (!result)
        result = space_insert(&range, NULL);
    if (!result) {
        *out = range.base;
        pool_account(pool, (int64_t)size);
    }
    return result;
}

/* Under memory_lock. */
CUresult memory_free(CUdeviceptr address)
{
    struct range *range = space_find(address);
    if (!range || range->base != address || range->kind != KIND_ALLOCATION)
        return CUDA_ERROR_INVALID_VALUE;
    pool_account(range->pool, -(int64_t)range->size);
    if (range->slab) {
        slab_give(range->slab, range->base, range->size);
    } else {
        space_release(range->base, range->physical->size);
        physical_put(range->physical);
    }
    space_remove(range);
    return CUDA_SUCCESS;
}

API(cuMemGetInfo_v2, size_t *free_bytes, size_t *total)
{
    ENTER_CONTEXT(context);
    if (!free_bytes || !total)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    *free_bytes = gpu_free(&gpus[context->device]);
    *total = gpu_total(&gpus[context->device]);
    pthread_mutex_unlock(&memory_lock);
    return CUDA_SUCCESS;
}

API(cuMemAlloc_v2, CUdeviceptr *out, size_t size)
{
    ENTER_CONTEXT(context);
    if (!out || !size)
        return CUDA_ERROR_INVALID_VALUE;
    if (size > (size_t)1 << 46)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&memory_lock);
    CUresult result = memory_allocate(context, NULL, size, out);
    pthread_mutex_unlock(&memory_lock);
    return result;
}

API(cuMemAllocPitch_v2, CUdeviceptr *out, size_t *pitch, size_t width, size_t height, unsigned element)
{
    if (!out || !pitch || !width || !height || (element != 4 && element != 8 && element != 16))
        return CUDA_ERROR_INVALID_VALUE;
    *pitch = round_up(width, 512);
    return cuMemAlloc_v2(out, *pitch * height);
}

API(cuMemFree_v2, CUdeviceptr address)
{
    ENTER_CONTEXT(context);
    if (!address)
        return CUDA_SUCCESS;
    CUresult result = context_wait_idle(context); /* as cuMemFree does */
    if (result)
        return result;
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find(address);
    if (range && range->kind == KIND_MANAGED && range->base == address) {
        space_release(range->base, round_up(range->size, GRANULARITY));
        space_remove(range);
    } else {
        result = memory_free(address);
    }
    pthread_mutex_unlock(&memory_lock);
    return result;
}

API(cuMemGetAddressRange_v2, CUdeviceptr *base, size_t *size, CUdeviceptr address)
{
    ENTER_CONTEXT(context);
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find(address);
    bool known = range && range->kind != KIND_REGISTERED;
    if (known && base)
        *base = range->base;
    if (known && size)
        *size = range->size;
    pthread_mutex_unlock(&memory_lock);
    return known ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
