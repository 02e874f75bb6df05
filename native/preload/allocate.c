/* cuMemAlloc and its kin: allocations of 2 MiB and more become extents of the agent at an address of our own. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "allocate.h"
#include "base.h"
#include "contexts.h"
#include "driver.h"
#include "free_cache.h"
#include "gate.h"
#include "managed.h"
#include "memory.h"
#include "process.h"
#include "unsupported.h"
#include "wrappers.h"

static struct kyb_block *block_of_grant(enum kyb_block_kind kind, struct kyb_grant *grant)
{
    struct kyb_block *block = kyb_block_new(kind, grant->count);
    if (!block) return NULL;
    for (size_t i = 0; i < grant->count; i++) {
        block->pieces[i] =
            (struct kyb_piece){.id = grant->records[i].id, .size = grant->records[i].size, .fd = grant->fds[i]};
        block->size += grant->records[i].size;
        grant->fds[i] = -1;
    }
    return block;
}

static uint64_t rounded_up(uint64_t size)
{
    return (size + KYB_CHUNK - 1) & ~(uint64_t)(KYB_CHUNK - 1);
}

/* *needy: this process empties its cache before it waits or is refused. */
static int obtain(enum kyb_block_kind kind, int device, uint64_t size, uint32_t flags, struct kyb_block **out,
                  bool *needy)
{
    uint8_t gpu[16];
    if (!kyb_gpu_of_device(device, gpu)) return -1;
    uint64_t rounded = rounded_up(size);
    for (;;) {
        int status = KYB_FAILED;
        struct kyb_grant grant = {0};
        if (kyb_ask_allocate(gpu, rounded, flags, &status, &grant) == KYB_AWAY) return -1;
        if (status == KYB_OK) {
            struct kyb_block *block = block_of_grant(kind, &grant);
            kyb_grant_close(&grant);
            if (!block) return CUDA_ERROR_OUT_OF_MEMORY;
            if (block->size != rounded) {
                kyb_forget(block);
                return -1;
            }
            block->requested = size;
            block->device = device;
            memcpy(block->gpu, gpu, 16);
            *out = block;
            return CUDA_SUCCESS;
        }
        kyb_grant_close(&grant);
        if ((status == KYB_OUT_OF_MEMORY || status == KYB_WAIT_FIRST) && !*needy) {
            *needy = true;
            if (kyb_free_cache_suspend()) continue;
        }
        if (status == KYB_OUT_OF_MEMORY) return CUDA_ERROR_OUT_OF_MEMORY;
        if (status != KYB_WAIT_FIRST) return -1;
        /* Wait outside the gate: a process that waits for VRAM can itself be paused meanwhile. */
        kyb_leave();
        enum kyb_answer answered = kyb_ask_wait(gpu, rounded, &status);
        kyb_enter(KYB_GATE_MEMORY);
        if (answered == KYB_AWAY) return -1;
        if (status != KYB_OK) return CUDA_ERROR_OUT_OF_MEMORY;
    }
}

int kyb_obtain(enum kyb_block_kind kind, int device, uint64_t size, uint32_t flags, struct kyb_block **out)
{
    bool needy = false;
    int result = obtain(kind, device, size, flags, out, &needy);
    if (needy) kyb_free_cache_resume();
    return result;
}

int kyb_map_allocation(struct kyb_block *block, uint64_t *address)
{
    uint64_t at = 0;
    int result =
        KYB_DRIVER(cuMemAddressReserve, (void *, size_t, size_t, uint64_t, uint64_t), (&at, block->size, 0, 0, 0));
    if (result != CUDA_SUCCESS) return result;
    result = kyb_map_pieces(at, block);
    if (result != CUDA_SUCCESS) {
        KYB_DRIVER(cuMemAddressFree, (uint64_t, size_t), (at, block->size));
        return result;
    }
    struct kyb_mapping probe = {.address = at, .size = block->size, .block = block};
    struct kyb_mem_access own = {{CU_MEM_LOCATION_TYPE_DEVICE, block->device}, CU_MEM_ACCESS_READ_WRITE};
    kyb_record_access(&probe, &own, 1);
    kyb_add_peer_access(&probe);
    result = KYB_DRIVER(cuMemSetAccess, (uint64_t, size_t, void *, size_t),
                        (at, block->size, probe.access, probe.access_count));
    if (result == CUDA_SUCCESS) {
        pthread_mutex_lock(&kyb_memory_lock);
        if (kyb_mapping_add(at, block)) {
            kyb_record_access(kyb_mapping_at(at), probe.access, probe.access_count);
            kyb_block_list(block);
        } else
            result = CUDA_ERROR_OUT_OF_MEMORY;
        pthread_mutex_unlock(&kyb_memory_lock);
    }
    if (result != CUDA_SUCCESS) {
        KYB_DRIVER(cuMemUnmap, (uint64_t, size_t), (at, block->size));
        KYB_DRIVER(cuMemAddressFree, (uint64_t, size_t), (at, block->size));
        return result;
    }
    *address = at;
    return CUDA_SUCCESS;
}

static int allocate(uint64_t *address, size_t size)
{
    int device;
    void *context = NULL;
    if (kyb_driver.cuCtxGetDevice(&device) != CUDA_SUCCESS || kyb_driver.cuCtxGetCurrent(&context) != CUDA_SUCCESS)
        return -1;
    if (kyb_free_cache_take(rounded_up(size), size, device, context, address)) return CUDA_SUCCESS;
    struct kyb_block *block = NULL;
    int result = kyb_obtain(KYB_BLOCK_ALLOCATION, device, size, 0, &block);
    if (result != CUDA_SUCCESS) return result;
    block->context = context;
    result = kyb_map_allocation(block, address);
    if (result != CUDA_SUCCESS) kyb_forget(block);
    return result;
}

int cuMemAlloc_v2(void *address, size_t size)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = kyb_enabled && address && size >= KYB_CHUNK ? allocate(address, size) : -1;
    if (result == -1) {
        result = KYB_DRIVER(cuMemAlloc_v2, (void *, size_t), (address, size));
        if (KYB_UNLIKELY(result == CUDA_ERROR_OUT_OF_MEMORY) && atomic_load(&kyb_cached_blocks)) {
            kyb_free_cache_flush(0);
            result = KYB_DRIVER(cuMemAlloc_v2, (void *, size_t), (address, size));
        }
    }
    kyb_leave();
    return result;
}

/* The allocation that begins at address. */
static struct kyb_mapping *allocation_at(uint64_t address)
{
    struct kyb_mapping *mapping = kyb_mapping_at(address);
    return mapping && mapping->address == address && mapping->block->kind == KYB_BLOCK_ALLOCATION ? mapping : NULL;
}

enum owner { OF_DRIVER, OURS, OURS_NO_MORE };

static enum owner owner_of(uint64_t address)
{
    if (!kyb_enabled) return OF_DRIVER;
    pthread_mutex_lock(&kyb_memory_lock);
    enum owner owner = allocation_at(address) ? OURS : kyb_cached_within(address, 1) ? OURS_NO_MORE : OF_DRIVER;
    pthread_mutex_unlock(&kyb_memory_lock);
    return owner;
}

/* `waited`: all work that may use it has ended, if it is of the current context. */
static int free_at(uint64_t address, bool waited)
{
    void *context = NULL;
    if (waited && (kyb_driver.cuCtxGetCurrent(&context) != CUDA_SUCCESS || !kyb_whole_context(context))) context = NULL;
    struct kyb_block *gone = NULL;
    pthread_mutex_lock(&kyb_memory_lock);
    struct kyb_mapping *mapping = allocation_at(address);
    int result = CUDA_ERROR_INVALID_VALUE;
    if (mapping)
        result = context && kyb_free_cache_put(mapping, context, &gone)
                     ? CUDA_SUCCESS
                     : kyb_free_allocation(allocation_at(address), &gone);
    pthread_mutex_unlock(&kyb_memory_lock);
    kyb_forget(gone);
    return result;
}

int cuMemFree_v2(uint64_t address)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result;
    switch (owner_of(address)) {
    case OURS: {
        /* An open capture forbids a synchronisation, but also has no work in flight of its own; other streams' work
         * on this memory would be the application's bug, as with the driver's own cuMemFree. */
        bool capturing = kyb_open_captures();
        result = capturing ? CUDA_SUCCESS : KYB_DRIVER(cuCtxSynchronize, (void), ());
        if (result == CUDA_SUCCESS) result = free_at(address, !capturing);
        break;
    }
    case OURS_NO_MORE: result = CUDA_ERROR_INVALID_VALUE; break;
    default:
        result = KYB_DRIVER(cuMemFree_v2, (uint64_t), (address));
        if (result == CUDA_SUCCESS && kyb_managed_freed(address)) atomic_fetch_sub(&kyb_managed, 1);
    }
    kyb_leave();
    return result;
}

static int free_async(uint64_t address, void *stream, int (*synchronize)(void *), int (*real)(uint64_t, void *))
{
    kyb_enter(KYB_GATE_MEMORY);
    int result;
    switch (owner_of(address)) {
    case OURS:
        /* The application has made its other streams' work come before that of this one. */
        result = synchronize(stream);
        if (result == CUDA_SUCCESS) result = free_at(address, true);
        break;
    case OURS_NO_MORE: result = CUDA_ERROR_INVALID_VALUE; break;
    default: result = real(address, stream);
    }
    kyb_leave();
    return result;
}

int cuMemFreeAsync(uint64_t address, void *stream)
{
    return free_async(address, stream, (int (*)(void *))kyb_real_of(KYB_CALL_cuStreamSynchronize),
                      (int (*)(uint64_t, void *))kyb_real_of(KYB_CALL_cuMemFreeAsync));
}

int cuMemFreeAsync_ptsz(uint64_t address, void *stream)
{
    return free_async(address, stream, (int (*)(void *))kyb_real_of(KYB_CALL_cuStreamSynchronize_ptsz),
                      (int (*)(uint64_t, void *))kyb_real_of(KYB_CALL_cuMemFreeAsync_ptsz));
}

/* Memory that is only cached is free to the application: one allocation away. */
int cuMemGetInfo_v2(void *free_bytes, void *total)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuMemGetInfo_v2, (void *, void *), (free_bytes, total)), device;
    if (result == CUDA_SUCCESS && free_bytes && total && atomic_load(&kyb_cached_blocks) &&
        kyb_driver.cuCtxGetDevice(&device) == CUDA_SUCCESS) {
        size_t more = *(size_t *)free_bytes + kyb_free_cache_bytes(device);
        *(size_t *)free_bytes = more < *(size_t *)total ? more : *(size_t *)total;
    }
    kyb_leave();
    return result;
}

/* Of 32 bits, which no large GPU's memory fits in. */
int cuMemGetInfo(void *free_bytes, void *total)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuMemGetInfo, (void *, void *), (free_bytes, total));
    kyb_leave();
    return result;
}
