/* The process's own virtual memory management (torch's expandable segments, JAX's pool, vLLM, NCCL): the handles it
 * holds are logical, so that the physical memory behind them can be taken away and replaced. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "allocate.h"
#include "base.h"
#include "driver.h"
#include "gate.h"
#include "memory.h"
#include "process.h"
#include "protocol.h"
#include "unsupported.h"
#include "wrappers.h"

/* Far from anything the driver hands out, so that a value tells whose it is. */
#define LOGICAL_BASE 0x4b79000000000000ULL
#define LOGICAL_MASK 0xffff000000000000ULL

static _Atomic uint64_t next_logical = LOGICAL_BASE + 16;

static bool is_logical(uint64_t handle)
{
    return (handle & LOGICAL_MASK) == LOGICAL_BASE;
}

static bool convertible(const struct kyb_mem_prop *prop, size_t size, uint64_t flags)
{
    return kyb_enabled && prop && flags == 0 && size >= KYB_CHUNK && size % KYB_CHUNK == 0 &&
           prop->type == CU_MEM_ALLOCATION_TYPE_PINNED && prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
           !(prop->requested_handle_types & ~CU_MEM_HANDLE_TYPE_POSIX_FD) && prop->flags.compression_type == 0 &&
           prop->flags.usage == 0 && !prop->win32_metadata;
}

int cuMemCreate(void *handle, size_t size, void *properties, uint64_t flags)
{
    const struct kyb_mem_prop *prop = properties;
    kyb_enter(KYB_GATE_MEMORY);
    int result = -1;
    if (handle && convertible(prop, size, flags)) {
        struct kyb_block *block = NULL;
        uint32_t wanted = (prop->requested_handle_types ? KYB_FLAG_SINGLE : 0) |
                          (prop->flags.gpu_direct_rdma_capable ? KYB_FLAG_RDMA : 0);
        result = kyb_obtain(KYB_BLOCK_HANDLE, prop->location.id, size, wanted, &block);
        if (result == CUDA_SUCCESS) {
            block->prop = *prop;
            block->references = 1;
            block->logical = atomic_fetch_add(&next_logical, 16);
            pthread_mutex_lock(&kyb_memory_lock);
            kyb_block_list(block);
            pthread_mutex_unlock(&kyb_memory_lock);
            *(uint64_t *)handle = block->logical;
        }
    }
    if (result == -1)
        result = KYB_DRIVER(cuMemCreate, (void *, size_t, void *, uint64_t), (handle, size, properties, flags));
    kyb_leave();
    return result;
}

/* With the lock held; then kyb_forget(gone). */
static void unlist_if_unused(struct kyb_block *block, struct kyb_block **gone)
{
    if (block->references || block->mappings || block->kind == KYB_BLOCK_ALLOCATION) return;
    if (block->kind == KYB_BLOCK_FOREIGN) {
        KYB_DRIVER(cuMemRelease, (uint64_t), (block->native));
        atomic_fetch_sub(&kyb_foreign, 1);
    }
    if (block->exported) atomic_fetch_sub(&kyb_exports, 1);
    kyb_block_unlist(block, gone);
}

int cuMemRelease(uint64_t handle)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result;
    if (is_logical(handle)) {
        struct kyb_block *gone = NULL;
        pthread_mutex_lock(&kyb_memory_lock);
        struct kyb_block *block = kyb_block_of_handle(handle);
        result = block ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        if (block) {
            block->references--;
            unlist_if_unused(block, &gone);
        }
        pthread_mutex_unlock(&kyb_memory_lock);
        kyb_forget(gone);
    } else
        result = KYB_DRIVER(cuMemRelease, (uint64_t), (handle));
    kyb_leave();
    return result;
}

int cuMemMap(uint64_t address, size_t size, size_t offset, uint64_t handle, uint64_t flags)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result;
    if (is_logical(handle)) {
        pthread_mutex_lock(&kyb_memory_lock);
        struct kyb_block *block = kyb_block_of_handle(handle);
        if (block && block->kind == KYB_BLOCK_FOREIGN) {
            result = KYB_DRIVER(cuMemMap, (uint64_t, size_t, size_t, uint64_t, uint64_t),
                                (address, size, offset, block->native, flags));
            block->size = size; /* only now do we learn it */
            if (result == CUDA_SUCCESS) kyb_mapping_add(address, block);
        } else if (!block || size > block->size || flags)
            result = CUDA_ERROR_INVALID_VALUE;
        else if (offset || size != block->size)
            result = CUDA_ERROR_NOT_SUPPORTED; /* as the driver answers */
        else {
            result = kyb_map_pieces(address, block);
            if (result == CUDA_SUCCESS && !kyb_mapping_add(address, block)) {
                KYB_DRIVER(cuMemUnmap, (uint64_t, size_t), (address, size));
                result = CUDA_ERROR_OUT_OF_MEMORY;
            }
        }
        pthread_mutex_unlock(&kyb_memory_lock);
    } else
        result = KYB_DRIVER(cuMemMap, (uint64_t, size_t, size_t, uint64_t, uint64_t),
                            (address, size, offset, handle, flags));
    kyb_leave();
    return result;
}

int cuMemUnmap(uint64_t address, size_t size)
{
    kyb_enter(KYB_GATE_MEMORY);
    struct kyb_block *gone = NULL;
    pthread_mutex_lock(&kyb_memory_lock);
    int result = CUDA_ERROR_INVALID_VALUE;
    if (!kyb_cached_within(address, size)) result = KYB_DRIVER(cuMemUnmap, (uint64_t, size_t), (address, size));
    if (result == CUDA_SUCCESS) {
        struct kyb_mapping *first;
        size_t count = kyb_mapping_range(address, size, &first);
        while (count-- > 0) {
            struct kyb_block *block = first->block;
            kyb_mapping_remove(first); /* the next one moves into its place */
            unlist_if_unused(block, &gone);
        }
    }
    pthread_mutex_unlock(&kyb_memory_lock);
    kyb_forget(gone);
    kyb_leave();
    return result;
}

int cuMemSetAccess(uint64_t address, size_t size, void *descriptors, size_t count)
{
    kyb_enter(KYB_GATE_MEMORY);
    pthread_mutex_lock(&kyb_memory_lock);
    int result = CUDA_ERROR_INVALID_VALUE;
    if (!kyb_cached_within(address, size))
        result = KYB_DRIVER(cuMemSetAccess, (uint64_t, size_t, void *, size_t), (address, size, descriptors, count));
    if (result == CUDA_SUCCESS) {
        struct kyb_mapping *first;
        size_t mapped = kyb_mapping_range(address, size, &first);
        for (size_t i = 0; i < mapped; i++) kyb_record_access(&first[i], descriptors, count);
    }
    pthread_mutex_unlock(&kyb_memory_lock);
    kyb_leave();
    return result;
}

int cuMemRetainAllocationHandle(void *handle, void *address)
{
    kyb_enter(KYB_GATE_MEMORY);
    pthread_mutex_lock(&kyb_memory_lock);
    struct kyb_mapping *mapping = kyb_enabled ? kyb_mapping_at((uint64_t)(uintptr_t)address) : NULL;
    int result;
    if (kyb_cached_within((uint64_t)(uintptr_t)address, 1))
        result = CUDA_ERROR_INVALID_VALUE;
    else if (!mapping)
        result = KYB_DRIVER(cuMemRetainAllocationHandle, (void *, void *), (handle, address));
    else if (mapping->block->kind == KYB_BLOCK_ALLOCATION || !handle)
        result = CUDA_ERROR_INVALID_VALUE;
    else {
        mapping->block->references++;
        *(uint64_t *)handle = mapping->block->logical;
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&kyb_memory_lock);
    kyb_leave();
    return result;
}

int cuMemGetAllocationPropertiesFromHandle(void *properties, uint64_t handle)
{
    int result = CUDA_ERROR_INVALID_VALUE;
    if (is_logical(handle)) {
        pthread_mutex_lock(&kyb_memory_lock);
        struct kyb_block *block = kyb_block_of_handle(handle);
        bool foreign = block && block->kind == KYB_BLOCK_FOREIGN;
        if (foreign)
            handle = block->native;
        else if (block && properties) {
            *(struct kyb_mem_prop *)properties = block->prop;
            result = CUDA_SUCCESS;
        }
        pthread_mutex_unlock(&kyb_memory_lock);
        if (!foreign) return result;
    }
    kyb_enter(KYB_GATE_ASK);
    result = KYB_DRIVER(cuMemGetAllocationPropertiesFromHandle, (void *, uint64_t), (properties, handle));
    kyb_leave();
    return result;
}

/* An imported handle can't be exported again (the driver refuses), but the descriptor we keep is as good a ticket. */
int cuMemExportToShareableHandle(void *shareable, uint64_t handle, int type, uint64_t flags)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result;
    if (is_logical(handle)) {
        pthread_mutex_lock(&kyb_memory_lock);
        struct kyb_block *block = kyb_block_of_handle(handle);
        result = CUDA_ERROR_INVALID_VALUE;
        if (block && block->kind == KYB_BLOCK_HANDLE && shareable && !flags && type == CU_MEM_HANDLE_TYPE_POSIX_FD &&
            (block->prop.requested_handle_types & type)) {
            int fd = fcntl(block->pieces[0].fd, F_DUPFD, 0);
            if (fd < 0)
                result = CUDA_ERROR_OUT_OF_MEMORY;
            else {
                *(int *)shareable = fd;
                if (!block->exported) atomic_fetch_add(&kyb_exports, 1);
                block->exported = true;
                result = CUDA_SUCCESS;
            }
        }
        pthread_mutex_unlock(&kyb_memory_lock);
    } else
        result = KYB_DRIVER(cuMemExportToShareableHandle, (void *, uint64_t, int, uint64_t),
                            (shareable, handle, type, flags));
    kyb_leave();
    return result;
}

int cuMemImportFromShareableHandle(void *handle, void *shareable, int type)
{
    kyb_enter(KYB_GATE_MEMORY);
    uint64_t native = 0;
    int result = KYB_DRIVER(cuMemImportFromShareableHandle, (void *, void *, int),
                            (kyb_enabled ? &native : handle, shareable, type));
    if (kyb_enabled && result == CUDA_SUCCESS) {
        struct kyb_block *block = kyb_block_new(KYB_BLOCK_FOREIGN, 0);
        if (block) {
            block->references = 1;
            block->native = native;
            block->logical = atomic_fetch_add(&next_logical, 16);
            pthread_mutex_lock(&kyb_memory_lock);
            kyb_block_list(block);
            pthread_mutex_unlock(&kyb_memory_lock);
            *(uint64_t *)handle = block->logical;
        } else
            *(uint64_t *)handle = native; /* unwrapped, but still counted */
        atomic_fetch_add(&kyb_foreign, 1);
    }
    kyb_leave();
    return result;
}

/* The driver's handle for one of the application's; *imported: to be released after use. */
static int native_handle(uint64_t handle, uint64_t *native, bool *imported)
{
    int result = CUDA_SUCCESS;
    *native = handle;
    *imported = false;
    if (!is_logical(handle)) return CUDA_SUCCESS;
    pthread_mutex_lock(&kyb_memory_lock);
    struct kyb_block *block = kyb_block_of_handle(handle);
    if (block && block->kind == KYB_BLOCK_FOREIGN)
        *native = block->native;
    else if (block && block->piece_count == 1) {
        result = KYB_DRIVER(cuMemImportFromShareableHandle, (void *, void *, int),
                            (native, (void *)(intptr_t)block->pieces[0].fd, CU_MEM_HANDLE_TYPE_POSIX_FD));
        *imported = result == CUDA_SUCCESS;
    } else
        result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_unlock(&kyb_memory_lock);
    return result;
}

int cuMulticastBindMem(uint64_t multicast, size_t multicast_offset, uint64_t handle, size_t offset, size_t size,
                       uint64_t flags)
{
    kyb_enter(KYB_GATE_MEMORY);
    uint64_t native;
    bool imported;
    int result = native_handle(handle, &native, &imported);
    if (result == CUDA_SUCCESS)
        result = KYB_DRIVER(cuMulticastBindMem, (uint64_t, size_t, uint64_t, size_t, size_t, uint64_t),
                            (multicast, multicast_offset, native, offset, size, flags));
    if (imported) KYB_DRIVER(cuMemRelease, (uint64_t), (native));
    kyb_leave();
    return result;
}

int cuMulticastBindMem_v2(uint64_t multicast, int device, size_t multicast_offset, uint64_t handle, size_t offset,
                          size_t size, uint64_t flags)
{
    kyb_enter(KYB_GATE_MEMORY);
    uint64_t native;
    bool imported;
    int result = native_handle(handle, &native, &imported);
    if (result == CUDA_SUCCESS)
        result = KYB_DRIVER(cuMulticastBindMem_v2, (uint64_t, int, size_t, uint64_t, size_t, size_t, uint64_t),
                            (multicast, device, multicast_offset, native, offset, size, flags));
    if (imported) KYB_DRIVER(cuMemRelease, (uint64_t), (native));
    kyb_leave();
    return result;
}
