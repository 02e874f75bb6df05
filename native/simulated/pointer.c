/* What an address is: cuPointerGetAttribute and cuPointerGetAttributes. */
#include "simulated.h"

#include <string.h>

/* Bytes of an attribute's value; 0 for one that isn't known. */
static size_t width(int attribute)
{
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
        return 8;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_MAPPED:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
        return 4;
    default:
        return 0;
    }
}

static uint64_t value_of(const struct range *range, int attribute, uint64_t address)
{
    bool host = range->kind == KIND_HOST || range->kind == KIND_REGISTERED;
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        return (uintptr_t)range->context;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        return host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        return address;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        return host || range->kind == KIND_MANAGED ? address : 0;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
        return range->sync_memops;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        return range->id;
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
        return range->physical ? range->physical->id : range->id;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        return range->kind == KIND_MANAGED;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        return (uint64_t)range->gpu;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        return range->kind == KIND_ALLOCATION && !range->pool;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
        return range->base;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
        return range->size;
    case CU_POINTER_ATTRIBUTE_MAPPED:
        return 1;
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
        return range->physical ? (uint64_t)range->physical->properties.requestedHandleTypes : 0;
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
        return range->kind == KIND_ALLOCATION ||
               (range->physical && range->physical->properties.allocFlags.gpuDirectRDMACapable);
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
        return (uint64_t)range->access;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        return (uintptr_t)range->pool;
    default:
        return 0;
    }
}

API(cuPointerGetAttribute, void *out, int attribute, CUdeviceptr address)
{
    ENTER_CONTEXT(context);
    size_t bytes = width(attribute);
    if (!out || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find(address);
    uint64_t value = range ? value_of(range, attribute, address) : 0;
    pthread_mutex_unlock(&memory_lock);
    if (!range)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(out, &value, bytes);
    return CUDA_SUCCESS;
}

/* Unlike the single form, an unknown address is no error: every value is then 0 (device ordinal: -2). */
API(cuPointerGetAttributes, unsigned count, int *attributes, void **out, CUdeviceptr address)
{
    ENTER_CONTEXT(context);
    if (!count || !attributes || !out)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < count; i++)
        if (!width(attributes[i]) || !out[i])
            return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find(address);
    for (unsigned i = 0; i < count; i++) {
        uint64_t value = range ? value_of(range, attributes[i], address)
                         : attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL ? (uint64_t)-2
                                                                                : 0;
        memcpy(out[i], &value, width(attributes[i]));
    }
    pthread_mutex_unlock(&memory_lock);
    return CUDA_SUCCESS;
}

API(cuPointerSetAttribute, const void *value, int attribute, CUdeviceptr address)
{
    ENTER_CONTEXT(context);
    if (!value || attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find(address);
    bool good = range != NULL;
    if (good)
        range->sync_memops = *(const int *)value != 0;
    pthread_mutex_unlock(&memory_lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
