/* Virtual memory management: cuMemCreate, cuMemMap and the rest, with the real driver's refusals:
 * only whole handles are mapped, whole mappings unmapped, and an imported handle can't be exported again. */
#include "simulated.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static CUmemGenericAllocationHandle handle_of(struct physical *physical)
{
    return (CUmemGenericAllocationHandle)(uintptr_t)physical;
}

static struct physical *of_handle(CUmemGenericAllocationHandle handle)
{
    struct physical *physical = (struct physical *)(uintptr_t)handle;
    return physical_valid(physical) ? physical : NULL;
}

static CUresult check_properties(const CUmemAllocationProp *properties)
{
    if (!properties || properties->type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    if (properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_NOT_SUPPORTED; /* host memory by these calls isn't simulated */
    if (!gpu_valid(properties->location.id))
        return CUDA_ERROR_INVALID_DEVICE;
    if (properties->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FD)
        return CUDA_ERROR_NOT_SUPPORTED;
    return CUDA_SUCCESS;
}

API(cuMemGetAllocationGranularity, size_t *out, const CUmemAllocationProp *properties, int option)
{
    ENTER();
    if (!out || option < 0 || option > 1)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = check_properties(properties);
    if (!result)
        *out = GRANULARITY;
    return result;
}

API(cuMemAddressReserve, CUdeviceptr *out, size_t size, size_t alignment, CUdeviceptr wanted, unsigned long long flags)
{
    ENTER();
    if (!out || !size || size % GRANULARITY || flags || (alignment & (alignment - 1)))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    uint64_t base = space_reserve(size, alignment, wanted);
    pthread_mutex_unlock(&memory_lock);
    *out = base;
    return base ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API(cuMemAddressFree, CUdeviceptr base, size_t size)
{
    ENTER();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    if (size && !space_overlaps(base, size) && space_release(base, size))
        result = CUDA_SUCCESS;
    pthread_mutex_unlock(&memory_lock);
    return result;
}

API(cuMemCreate, CUmemGenericAllocationHandle *out, size_t size, const CUmemAllocationProp *properties,
    unsigned long long flags)
{
    ENTER();
    struct physical *physical;
    if (!out || !size || size % GRANULARITY || flags)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = check_properties(properties);
    if (result)
        return result;
    enum origin origin = properties->requestedHandleTypes ? ORIGIN_CREATED : ORIGIN_NATIVE;
    pthread_mutex_lock(&memory_lock);
    result = physical_create(properties->location.id, origin, size, &physical);
    if (!result) {
        physical->properties = *properties;
        physical->handles = 1;
        *out = handle_of(physical);
    }
    pthread_mutex_unlock(&memory_lock);
    return result;
}

API(cuMemRelease, CUmemGenericAllocationHandle handle)
{
    ENTER();
    pthread_mutex_lock(&memory_lock);
    struct physical *physical = of_handle(handle);
    if (physical) {
        physical->handles--;
        physical_put(physical);
    }
    pthread_mutex_unlock(&memory_lock);
    return physical ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuMemRetainAllocationHandle, CUmemGenericAllocationHandle *out, void *address)
{
    ENTER();
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find((uintptr_t)address);
    bool good = range && range->kind == KIND_MAPPING;
    if (good) {
        range->physical->handles++;
        range->physical->references++;
        *out = handle_of(range->physical);
    }
    pthread_mutex_unlock(&memory_lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuMemGetAllocationPropertiesFromHandle, CUmemAllocationProp *out, CUmemGenericAllocationHandle handle)
{
    ENTER();
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    struct physical *physical = of_handle(handle);
    if (physical)
        *out = physical->properties;
    pthread_mutex_unlock(&memory_lock);
    return physical ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuMemMap, CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
    unsigned long long flags)
{
    ENTER();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (!size || size % GRANULARITY || address % GRANULARITY || offset % GRANULARITY || flags)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    struct physical *physical = of_handle(handle);
    if (!physical || size > physical->size || offset > physical->size - size || !space_reserved(address, size) ||
        space_overlaps(address, size)) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else if (offset || size != physical->size) {
        result = CUDA_ERROR_NOT_SUPPORTED;
    } else {
        struct range range = {.base = address,
                              .size = size,
                              .kind = KIND_MAPPING,
                              .gpu = physical->gpu,
                              .access = CU_MEM_ACCESS_NONE,
                              .physical = physical};
        result = space_map(address, physical, CU_MEM_ACCESS_NONE);
        if (!result)
            result = space_insert(&range, NULL);
        if (!result)
            physical->references++;
    }
    pthread_mutex_unlock(&memory_lock);
    return result;
}

/* Whether the bytes are exactly a row of whole mappings. Under memory_lock. */
static bool whole_mappings(uint64_t address, size_t size)
{
    uint64_t reached = address;
    for (size_t i = space_index(address); i < space_count && reached < address + size; i++) {
        struct range *range = space_ranges[i];
        if (range->base != reached || range->kind != KIND_MAPPING)
            return false;
        reached += range->size;
    }
    return size && reached == address + size;
}

API(cuMemUnmap, CUdeviceptr address, size_t size)
{
    ENTER();
    bool good;
    pthread_mutex_lock(&memory_lock);
    good = whole_mappings(address, size);
    if (good) {
        space_unmap(address, size);
        for (uint64_t at = address; at < address + size;) {
            struct range *range = space_find(at);
            at += range->size;
            physical_put(range->physical);
            space_remove(range);
        }
    }
    pthread_mutex_unlock(&memory_lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuMemSetAccess, CUdeviceptr address, size_t size, const CUmemAccessDesc *descriptions, size_t count)
{
    ENTER();
    if (!descriptions || !count)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        int flags = descriptions[i].flags;
        if (flags != CU_MEM_ACCESS_NONE && flags != CU_MEM_ACCESS_READ && flags != CU_MEM_ACCESS_READ_WRITE)
            return CUDA_ERROR_INVALID_VALUE;
        if (descriptions[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE && !gpu_valid(descriptions[i].location.id))
            return CUDA_ERROR_INVALID_DEVICE;
    }
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    if (whole_mappings(address, size)) {
        result = CUDA_SUCCESS;
        for (uint64_t at = address; at < address + size && !result;) {
            struct range *range = space_find(at);
            for (size_t i = 0; i < count; i++)
                if (descriptions[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
                    descriptions[i].location.id == range->gpu)
                    range->access = descriptions[i].flags;
            result = space_protect(at, range->size, range->access);
            at += range->size;
        }
    }
    pthread_mutex_unlock(&memory_lock);
    return result;
}

API(cuMemGetAccess, unsigned long long *flags, const CUmemLocation *location, CUdeviceptr address)
{
    ENTER();
    if (!flags || !location)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    struct range *range = space_find(address);
    bool good = range && range->kind == KIND_MAPPING && location->type == CU_MEM_LOCATION_TYPE_DEVICE;
    if (good)
        *flags = location->id == range->gpu ? (unsigned long long)range->access : CU_MEM_ACCESS_NONE;
    pthread_mutex_unlock(&memory_lock);
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuMemExportToShareableHandle, void *out, CUmemGenericAllocationHandle handle, int type, unsigned long long flags)
{
    ENTER();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (!out || flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FD)
        return CUDA_ERROR_NOT_SUPPORTED;
    pthread_mutex_lock(&memory_lock);
    struct physical *physical = of_handle(handle);
    if (physical && physical->origin == ORIGIN_CREATED) {
        int fd = fcntl(physical->fd, F_DUPFD_CLOEXEC, 3);
        result = fd < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
        if (!result)
            *(int *)out = fd;
    }
    pthread_mutex_unlock(&memory_lock);
    return result;
}

API(cuMemImportFromShareableHandle, CUmemGenericAllocationHandle *out, void *os_handle, int type)
{
    ENTER();
    struct stat status;
    int given = (int)(intptr_t)os_handle;
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FD)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (given < 0 || fstat(given, &status) || !S_ISREG(status.st_mode) || status.st_nlink != 0 || !status.st_size ||
        (size_t)status.st_size % GRANULARITY)
        return CUDA_ERROR_INVALID_VALUE;
    int gpu = 0;
    while (gpu < gpu_count && gpus[gpu].device != status.st_dev)
        gpu++;
    if (gpu == gpu_count)
        return CUDA_ERROR_INVALID_VALUE;
    int fd = fcntl(given, F_DUPFD_CLOEXEC, 3);
    if (fd < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    struct physical *physical;
    pthread_mutex_lock(&memory_lock);
    CUresult result = physical_adopt(gpu, ORIGIN_IMPORTED, fd, 0, (size_t)status.st_size, &physical);
    if (!result) {
        physical->handles = 1;
        physical->properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
        physical->properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FD;
        physical->properties.location = (CUmemLocation){CU_MEM_LOCATION_TYPE_DEVICE, gpu};
        *out = handle_of(physical);
    }
    pthread_mutex_unlock(&memory_lock);
    return result;
}
