/* What memory says about itself: one range, however many extents it is made of, and the same before and after a
 * pause.
 *
 * While extents are unmapped the driver knows nothing of their addresses (INVALID_VALUE, or success with memory type
 * 0), so whoever asks it waits at a gate of its own, which is shut from the unmapping to the end of the pause. Not
 * sooner: a question is over in a moment and takes no part in GPU work, but who asks may hold a lock that work which
 * is still waited for needs.
 *
 * What only the application's view decides is answered from our own tables, without waiting. The lock of the tables
 * is held by nobody who waits for a gate.
 */
#include <pthread.h>

#include "driver.h"
#include "gate.h"
#include "memory.h"
#include "process.h"
#include "wrappers.h"

struct range {
    uint64_t base, size, mapped;
    uint64_t buffer_id, block_id, handle_types;
    void *context;
    bool allocation; /* by cuMemAlloc, as far as the application knows */
};

/* No memory is there: asked about it, the driver says in its own words what it says of memory that was freed. */
#define NOWHERE 16

/* The range the application knows around *address; false: not ours, or freed: then ask the driver about *address. */
static bool range_of(uint64_t *address, struct range *range)
{
    if (!kyb_enabled) return false;
    pthread_mutex_lock(&kyb_memory_lock);
    struct kyb_mapping *mapping = kyb_mapping_at(*address);
    if (mapping) {
        const struct kyb_block *block = mapping->block;
        bool allocation = block->kind == KYB_BLOCK_ALLOCATION;
        *range = (struct range){
            .base = mapping->address,
            .size = allocation ? block->requested : mapping->size,
            .mapped = mapping->size,
            .buffer_id = mapping->buffer_id,
            .block_id = block->id,
            .handle_types = block->kind == KYB_BLOCK_HANDLE ? (uint64_t)block->prop.requested_handle_types
                                                            : CU_MEM_HANDLE_TYPE_NONE,
            .context = block->context,
            .allocation = allocation,
        };
    } else if (kyb_cached_within(*address, 1))
        *address = NOWHERE;
    pthread_mutex_unlock(&kyb_memory_lock);
    return mapping != NULL;
}

/* No gate for ours: the tables stay as they are while the memory is away. */
int cuMemGetAddressRange_v2(void *base, void *size, uint64_t address)
{
    struct range range = {0};
    if (range_of(&address, &range)) {
        if (base) *(uint64_t *)base = range.base;
        if (size) *(size_t *)size = range.size;
        return CUDA_SUCCESS;
    }
    kyb_enter(KYB_GATE_ASK);
    int result = KYB_DRIVER(cuMemGetAddressRange_v2, (void *, void *, uint64_t), (base, size, address));
    kyb_leave();
    return result;
}

/* The driver has judged the question; what it said of one extent becomes what holds for the range. */
static void correct(int attribute, void *value, const struct range *range)
{
    if (!value) return;
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR: *(uint64_t *)value = range->base; break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t *)value = range->size; break;
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE: *(size_t *)value = range->mapped; break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(uint64_t *)value = range->buffer_id; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID: *(uint64_t *)value = range->block_id; break;
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES: *(uint64_t *)value = range->handle_types; break;
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        if (range->allocation) *(void **)value = range->context;
        break;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        if (range->allocation) *(unsigned char *)value = 1;
        break;
    default: break;
    }
}

int cuPointerGetAttribute(void *value, int attribute, uint64_t address)
{
    struct range range = {0};
    kyb_enter(KYB_GATE_ASK);
    bool ours = range_of(&address, &range);
    int result = KYB_DRIVER(cuPointerGetAttribute, (void *, int, uint64_t), (value, attribute, address));
    if (ours && result == CUDA_SUCCESS) correct(attribute, value, &range);
    kyb_leave();
    return result;
}

int cuPointerGetAttributes(unsigned int count, void *attributes, void *values, uint64_t address)
{
    struct range range = {0};
    kyb_enter(KYB_GATE_ASK);
    bool ours = range_of(&address, &range);
    int result = KYB_DRIVER(cuPointerGetAttributes, (unsigned int, void *, void *, uint64_t),
                            (count, attributes, values, address));
    if (ours && result == CUDA_SUCCESS)
        for (unsigned int i = 0; i < count; i++) correct(((int *)attributes)[i], ((void **)values)[i], &range);
    kyb_leave();
    return result;
}

/* No question: it may wait for copies. */
int cuPointerSetAttribute(void *value, int attribute, uint64_t address)
{
    kyb_enter(KYB_GATE_MEMORY);
    pthread_mutex_lock(&kyb_memory_lock);
    struct kyb_mapping *mapping = kyb_enabled ? kyb_mapping_at(address) : NULL;
    bool freed = kyb_enabled && !mapping && kyb_cached_within(address, 1);
    int result =
        KYB_DRIVER(cuPointerSetAttribute, (void *, int, uint64_t), (value, attribute, freed ? NOWHERE : address));
    if (result == CUDA_SUCCESS && mapping && attribute == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS) {
        mapping->sync_memops = *(int *)value;
        result = kyb_set_sync_memops(mapping->address, mapping->block, mapping->sync_memops);
    }
    pthread_mutex_unlock(&kyb_memory_lock);
    kyb_leave();
    return result;
}

int cuMemGetAccess(void *flags, void *location, uint64_t address)
{
    struct range range = {0};
    kyb_enter(KYB_GATE_ASK);
    range_of(&address, &range);
    int result = KYB_DRIVER(cuMemGetAccess, (void *, void *, uint64_t), (flags, location, address));
    kyb_leave();
    return result;
}
