/* cuMemAlloc and its kin: allocations of 2 MiB and more become extents of the agent at an address of our own. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kybernate.h"

static struct kyb_block *block_of_grant(enum kyb_block_kind kind, struct kyb_grant *grant)
{
    struct kyb_block *block = kyb_block_new(kind, grant->count);
    if (!block) return NULL;
    for (size_t i = 0; i < grant->count; i++) {
        block->pieces[i] = (struct kyb_piece){.id = grant->records[i].id, .size = grant->records[i].size, .fd = grant->fds[i]};
        block->size += grant->records[i].size;
        grant->fds[i] = -1;
    }
    return block;
}

int kyb_obtain(enum kyb_block_kind kind, int device, uint64_t size, uint32_t flags, struct kyb_block **out)
{
    uint8_t gpu[16];
    if (!kyb_gpu_of_device(device, gpu)) return -1;
    uint64_t rounded = (size + KYB_CHUNK - 1) & ~(uint64_t)(KYB_CHUNK - 1);
    for (;;) {
        int status = KYB_FAILED;
        struct kyb_grant grant = {0};
        if (kyb_ask_allocate(gpu, rounded, flags, &status, &grant) == KYB_AWAY) return -1;
        if (status == KYB_OK) {
            struct kyb_block *block = block_of_grant(kind, &grant);
            kyb_grant_close(&grant);
            if (!block) return CUDA_ERROR_OUT_OF_MEMORY;
            if (block->size != rounded) {
                kyb_block_forget(block);
                return -1;
            }
            block->requested = size;
            block->device = device;
            memcpy(block->gpu, gpu, 16);
            *out = block;
            return CUDA_SUCCESS;
        }
        kyb_grant_close(&grant);
        if (status == KYB_OUT_OF_MEMORY) return CUDA_ERROR_OUT_OF_MEMORY;
        if (status != KYB_WAIT_FIRST) return -1;
        /* Wait outside the gate: a process that waits for room can itself be paused meanwhile. */
        kyb_leave();
        enum kyb_answer answered = kyb_ask_wait(gpu, rounded, &status);
        kyb_enter(KYB_GATE_MEMORY);
        if (answered == KYB_AWAY) return -1;
        if (status != KYB_OK) return CUDA_ERROR_OUT_OF_MEMORY;
    }
}

int kyb_place(struct kyb_block *block, uint64_t *address)
{
    uint64_t at = 0;
    int result = KYB_DRIVER(cuMemAddressReserve, (void *, size_t, size_t, uint64_t, uint64_t), (&at, block->size, 0, 0, 0));
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
    result = KYB_DRIVER(cuMemSetAccess, (uint64_t, size_t, void *, size_t), (at, block->size, probe.access, probe.access_count));
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
    if (kyb_driver.cuCtxGetDevice(&device) != CUDA_SUCCESS || kyb_driver.cuCtxGetCurrent(&context) != CUDA_SUCCESS) return -1;
    struct kyb_block *block = NULL;
    int result = kyb_obtain(KYB_BLOCK_ALLOCATION, device, size, 0, &block);
    if (result != CUDA_SUCCESS) return result;
    block->context = context;
    result = kyb_place(block, address);
    if (result != CUDA_SUCCESS) kyb_block_forget(block);
    return result;
}

int cuMemAlloc_v2(void *address, size_t size)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = kyb_enabled && address && size >= KYB_CHUNK ? allocate(address, size) : -1;
    if (result == -1) result = KYB_DRIVER(cuMemAlloc_v2, (void *, size_t), (address, size));
    kyb_leave();
    return result;
}

/* Called with the gate entered. Waits for the GPU as cuMemFree does (unmapping alone would not). */
int kyb_free_allocation(struct kyb_mapping *mapping)
{
    struct kyb_block *block = mapping->block;
    uint64_t address = mapping->address, size = mapping->size;
    int result = KYB_DRIVER(cuMemUnmap, (uint64_t, size_t), (address, size));
    if (result != CUDA_SUCCESS) return result;
    if (block->exported) atomic_fetch_sub(&kyb_ipc_exported, 1);
    kyb_mapping_remove(mapping);
    KYB_DRIVER(cuMemAddressFree, (uint64_t, size_t), (address, size));
    kyb_block_forget(block);
    return CUDA_SUCCESS;
}

/* The allocation that begins at address. */
static struct kyb_mapping *allocation_at(uint64_t address)
{
    struct kyb_mapping *mapping = kyb_mapping_at(address);
    return mapping && mapping->address == address && mapping->block->kind == KYB_BLOCK_ALLOCATION ? mapping : NULL;
}

static bool is_allocation(uint64_t address)
{
    if (!kyb_enabled) return false;
    pthread_mutex_lock(&kyb_memory_lock);
    bool found = allocation_at(address) != NULL;
    pthread_mutex_unlock(&kyb_memory_lock);
    return found;
}

static int free_at(uint64_t address)
{
    pthread_mutex_lock(&kyb_memory_lock);
    struct kyb_mapping *mapping = allocation_at(address);
    int result = mapping ? kyb_free_allocation(mapping) : CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_unlock(&kyb_memory_lock);
    return result;
}

int cuMemFree_v2(uint64_t address)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result;
    if (is_allocation(address)) {
        /* An open capture forbids a synchronisation, but also has no work in flight of its own; other streams' work
         * on this memory would be the application's bug, as with the driver's own cuMemFree. */
        result = kyb_open_captures() ? CUDA_SUCCESS : KYB_DRIVER(cuCtxSynchronize, (void), ());
        if (result == CUDA_SUCCESS) result = free_at(address);
    } else {
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
    if (is_allocation(address)) {
        result = synchronize(stream);
        if (result == CUDA_SUCCESS) result = free_at(address);
    } else
        result = real(address, stream);
    kyb_leave();
    return result;
}

int cuMemFreeAsync(uint64_t address, void *stream)
{
    return free_async(address, stream, (int (*)(void *))kyb_real_of(KYB_CALL_cuStreamSynchronize), (int (*)(uint64_t, void *))kyb_real_of(KYB_CALL_cuMemFreeAsync));
}

int cuMemFreeAsync_ptsz(uint64_t address, void *stream)
{
    return free_async(address, stream, (int (*)(void *))kyb_real_of(KYB_CALL_cuStreamSynchronize_ptsz), (int (*)(uint64_t, void *))kyb_real_of(KYB_CALL_cuMemFreeAsync_ptsz));
}

/* ---- what an allocation says about itself: one range, however many extents it is made of ---- */

/* The range the application knows around address; false: not ours, or as the driver says. */
static bool range_of(uint64_t address, uint64_t *base, uint64_t *size, enum kyb_block_kind *kind)
{
    if (!kyb_enabled) return false;
    pthread_mutex_lock(&kyb_memory_lock);
    struct kyb_mapping *mapping = kyb_mapping_at(address);
    if (mapping) {
        *base = mapping->address;
        *kind = mapping->block->kind;
        *size = *kind == KYB_BLOCK_ALLOCATION ? mapping->block->requested : mapping->size;
    }
    pthread_mutex_unlock(&kyb_memory_lock);
    return mapping != NULL;
}

int cuMemGetAddressRange_v2(void *base, void *size, uint64_t address)
{
    uint64_t from, bytes;
    enum kyb_block_kind kind;
    if (!range_of(address, &from, &bytes, &kind)) return KYB_DRIVER(cuMemGetAddressRange_v2, (void *, void *, uint64_t), (base, size, address));
    if (base) *(uint64_t *)base = from;
    if (size) *(size_t *)size = bytes;
    return CUDA_SUCCESS;
}

static void correct(int attribute, void *value, uint64_t address)
{
    uint64_t from, bytes;
    enum kyb_block_kind kind;
    if (!value || !range_of(address, &from, &bytes, &kind)) return;
    if (attribute == CU_POINTER_ATTRIBUTE_RANGE_START_ADDR) *(uint64_t *)value = from;
    if (attribute == CU_POINTER_ATTRIBUTE_RANGE_SIZE) *(size_t *)value = bytes;
    if (kind != KYB_BLOCK_ALLOCATION) return;
    if (attribute == CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE) *(unsigned char *)value = 1;
    if (attribute == CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES) *(uint64_t *)value = CU_MEM_HANDLE_TYPE_NONE;
}

int cuPointerGetAttribute(void *value, int attribute, uint64_t address)
{
    int result = KYB_DRIVER(cuPointerGetAttribute, (void *, int, uint64_t), (value, attribute, address));
    if (result == CUDA_SUCCESS) correct(attribute, value, address);
    return result;
}

int cuPointerGetAttributes(unsigned int count, void *attributes, void *values, uint64_t address)
{
    int result = KYB_DRIVER(cuPointerGetAttributes, (unsigned int, void *, void *, uint64_t), (count, attributes, values, address));
    if (result == CUDA_SUCCESS)
        for (unsigned int i = 0; i < count; i++) correct(((int *)attributes)[i], ((void **)values)[i], address);
    return result;
}
