/* Copies and fills. Addresses are checked when the call is made, as the driver does; the bytes move when
 * their turn in the stream comes. */
#include "simulated.h"

/* What a side of a copy may be. */
enum side { SIDE_HOST, SIDE_DEVICE, SIDE_ANY };

/* Whether the bytes may be touched; tells too whether they are in host memory, and in pageable memory. */
static bool check(uint64_t address, size_t size, enum side side, bool write, bool *host, bool *pageable)
{
    struct range *range;
    *host = side == SIDE_HOST;
    *pageable = false;
    if (!size)
        return true;
    if (space_accessible(address, size, write, &range)) {
        *host = range->kind == KIND_HOST || range->kind == KIND_REGISTERED;
        return true;
    }
    if (!address || side == SIDE_DEVICE || space_is_device(address))
        return false;
    *host = *pageable = true;
    return true;
}

/* Completes the work; *pageable: a side of it is pageable memory. */
static CUresult prepare_copy(struct context *context, struct work *work, enum side to, enum side from, bool *pageable)
{
    bool to_host, from_host, to_pageable, from_pageable;
    size_t rows = work->u.copy.rows, width = work->u.copy.width;

    work->kind = WORK_COPY;
    work->context = context;
    if (!check(work->u.copy.destination, (rows - 1) * work->u.copy.destination_pitch + width, to, true, &to_host,
               &to_pageable) ||
        !check(work->u.copy.source, (rows - 1) * work->u.copy.source_pitch + width, from, false, &from_host,
               &from_pageable))
        return CUDA_ERROR_INVALID_VALUE;
    work->u.copy.crosses_link = to_host != from_host;
    *pageable = to_pageable || from_pageable;
    return CUDA_SUCCESS;
}

static CUresult submit_copy(struct context *context, CUstream stream, bool synchronous, struct work *work, enum side to,
                            enum side from)
{
    bool pageable;
    if (!work->u.copy.rows || !work->u.copy.width)
        return CUDA_SUCCESS;
    CUresult result = prepare_copy(context, work, to, from, &pageable);
    if (result)
        return result;
    enum wait wait = synchronous ? WAIT_DONE : pageable ? WAIT_UNLESS_CAPTURED : WAIT_NOT;
    return stream_submit(stream, work, wait);
}

static CUresult copy_flat(CUstream stream, bool synchronous, uint64_t to, enum side to_side, uint64_t from,
                          enum side from_side, size_t size)
{
    ENTER_CONTEXT(context);
    struct work work = {0};
    work.u.copy.destination = to;
    work.u.copy.source = from;
    work.u.copy.width = size;
    work.u.copy.rows = 1;
    return submit_copy(context, stream, synchronous, &work, to_side, from_side);
}

API(cuMemcpyHtoD_v2, CUdeviceptr to, const void *from, size_t size)
{
    return copy_flat(NULL, true, to, SIDE_DEVICE, (uintptr_t)from, SIDE_HOST, size);
}

API(cuMemcpyDtoH_v2, void *to, CUdeviceptr from, size_t size)
{
    return copy_flat(NULL, true, (uintptr_t)to, SIDE_HOST, from, SIDE_DEVICE, size);
}

API(cuMemcpyDtoD_v2, CUdeviceptr to, CUdeviceptr from, size_t size)
{
    return copy_flat(NULL, true, to, SIDE_DEVICE, from, SIDE_DEVICE, size);
}

API(cuMemcpy, CUdeviceptr to, CUdeviceptr from, size_t size)
{
    return copy_flat(NULL, true, to, SIDE_ANY, from, SIDE_ANY, size);
}

API(cuMemcpyHtoDAsync_v2, CUdeviceptr to, const void *from, size_t size, CUstream stream)
{
    return copy_flat(stream, false, to, SIDE_DEVICE, (uintptr_t)from, SIDE_HOST, size);
}

API(cuMemcpyDtoHAsync_v2, void *to, CUdeviceptr from, size_t size, CUstream stream)
{
    return copy_flat(stream, false, (uintptr_t)to, SIDE_HOST, from, SIDE_DEVICE, size);
}

API(cuMemcpyDtoDAsync_v2, CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream)
{
    return copy_flat(stream, false, to, SIDE_DEVICE, from, SIDE_DEVICE, size);
}

API(cuMemcpyAsync, CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream)
{
    return copy_flat(stream, false, to, SIDE_ANY, from, SIDE_ANY, size);
}

API(cuMemcpyPeer, CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t size)
{
    (void)to_context;
    (void)from_context;
    return cuMemcpyDtoD_v2(to, from, size);
}

API(cuMemcpyPeerAsync, CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t size,
    CUstream stream)
{
    (void)to_context;
    (void)from_context;
    return cuMemcpyDtoDAsync_v2(to, from, size, stream);
}

static enum side side_of(int memory_type)
{
    return memory_type == CU_MEMORYTYPE_HOST ? SIDE_HOST : memory_type == CU_MEMORYTYPE_DEVICE ? SIDE_DEVICE : SIDE_ANY;
}

static CUresult copy_2d(const CUDA_MEMCPY2D *copy, CUstream stream, bool synchronous)
{
    ENTER_CONTEXT(context);
    struct work work = {0};
    enum side sides[2];

    if (!copy)
        return CUDA_ERROR_INVALID_VALUE;
    if (copy->srcMemoryType == CU_MEMORYTYPE_ARRAY || copy->dstMemoryType == CU_MEMORYTYPE_ARRAY)
        return CUDA_ERROR_NOT_SUPPORTED;
    sides[0] = side_of(copy->srcMemoryType);
    sides[1] = side_of(copy->dstMemoryType);
    size_t from_pitch = copy->srcPitch ? copy->srcPitch : copy->WidthInBytes;
    size_t to_pitch = copy->dstPitch ? copy->dstPitch : copy->WidthInBytes;
    if (from_pitch < copy->WidthInBytes || to_pitch < copy->WidthInBytes)
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t from = sides[0] == SIDE_HOST ? (uintptr_t)copy->srcHost : copy->srcDevice;
    uint64_t to = sides[1] == SIDE_HOST ? (uintptr_t)copy->dstHost : copy->dstDevice;
    work.u.copy.source = from + copy->srcY * from_pitch + copy->srcXInBytes;
    work.u.copy.destination = to + copy->dstY * to_pitch + copy->dstXInBytes;
    work.u.copy.source_pitch = from_pitch;
    work.u.copy.destination_pitch = to_pitch;
    work.u.copy.width = copy->WidthInBytes;
    work.u.copy.rows = copy->Height;
    return submit_copy(context, stream, synchronous, &work, sides[1], sides[0]);
}

API(cuMemcpy2D_v2, const CUDA_MEMCPY2D *copy) { return copy_2d(copy, NULL, true); }
API(cuMemcpy2DUnaligned_v2, const CUDA_MEMCPY2D *copy) { return copy_2d(copy, NULL, true); }
API(cuMemcpy2DAsync_v2, const CUDA_MEMCPY2D *copy, CUstream stream) { return copy_2d(copy, stream, false); }

static CUresult fill(CUstream stream, bool synchronous, uint64_t address, size_t pitch, uint32_t value,
                     unsigned element, size_t width, size_t rows)
{
    ENTER_CONTEXT(context);
    struct work work = {.kind = WORK_SET, .context = context};

    if (!width || !rows)
        return CUDA_SUCCESS;
    if (width > SIZE_MAX / element || address % element ||
        !space_accessible(address, (rows - 1) * pitch + width * element, true, NULL))
        return CUDA_ERROR_INVALID_VALUE;
    work.u.set.destination = address;
    work.u.set.value = value;
    work.u.set.element = element;
    work.u.set.width = width;
    work.u.set.rows = rows;
    work.u.set.pitch = pitch;
    return stream_submit(stream, &work, synchronous ? WAIT_DONE : WAIT_NOT);
}

API(cuMemsetD8_v2, CUdeviceptr address, unsigned char value, size_t count)
{
    return fill(NULL, true, address, 0, value, 1, count, 1);
}

API(cuMemsetD16_v2, CUdeviceptr address, unsigned short value, size_t count)
{
    return fill(NULL, true, address, 0, value, 2, count, 1);
}

API(cuMemsetD32_v2, CUdeviceptr address, unsigned value, size_t count)
{
    return fill(NULL, true, address, 0, value, 4, count, 1);
}

API(cuMemsetD8Async, CUdeviceptr address, unsigned char value, size_t count, CUstream stream)
{
    return fill(stream, false, address, 0, value, 1, count, 1);
}

API(cuMemsetD16Async, CUdeviceptr address, unsigned short value, size_t count, CUstream stream)
{
    return fill(stream, false, address, 0, value, 2, count, 1);
}

API(cuMemsetD32Async, CUdeviceptr address, unsigned value, size_t count, CUstream stream)
{
    return fill(stream, false, address, 0, value, 4, count, 1);
}

API(cuMemsetD2D8_v2, CUdeviceptr address, size_t pitch, unsigned char value, size_t width, size_t rows)
{
    return fill(NULL, true, address, pitch, value, 1, width, rows);
}

API(cuMemsetD2D16_v2, CUdeviceptr address, size_t pitch, unsigned short value, size_t width, size_t rows)
{
    return fill(NULL, true, address, pitch, value, 2, width, rows);
}

API(cuMemsetD2D32_v2, CUdeviceptr address, size_t pitch, unsigned value, size_t width, size_t rows)
{
    return fill(NULL, true, address, pitch, value, 4, width, rows);
}

/* ---- the same as nodes of a graph: judged when they are added, as the driver does ---- */

API(cuGraphAddMemcpyNode, CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count,
    const CUDA_MEMCPY3D *copy, CUcontext of)
{
    ENTER_CONTEXT(context);
    struct work work = {0};
    bool pageable;

    (void)of;
    if (!copy || (count && !dependencies) || !copy->WidthInBytes || !copy->Height || !copy->Depth)
        return CUDA_ERROR_INVALID_VALUE;
    if (copy->Depth != 1 || copy->srcZ || copy->dstZ || copy->srcMemoryType == CU_MEMORYTYPE_ARRAY ||
        copy->dstMemoryType == CU_MEMORYTYPE_ARRAY)
        return CUDA_ERROR_NOT_SUPPORTED;
    enum side from_side = side_of(copy->srcMemoryType), to_side = side_of(copy->dstMemoryType);
    uint64_t from = from_side == SIDE_HOST ? (uintptr_t)copy->srcHost : copy->srcDevice;
    uint64_t to = to_side == SIDE_HOST ? (uintptr_t)copy->dstHost : copy->dstDevice;
    work.u.copy.source_pitch = copy->srcPitch ? copy->srcPitch : copy->WidthInBytes;
    work.u.copy.destination_pitch = copy->dstPitch ? copy->dstPitch : copy->WidthInBytes;
    work.u.copy.source = from + copy->srcY * work.u.copy.source_pitch + copy->srcXInBytes;
    work.u.copy.destination = to + copy->dstY * work.u.copy.destination_pitch + copy->dstXInBytes;
    work.u.copy.width = copy->WidthInBytes;
    work.u.copy.rows = copy->Height;
    CUresult result = prepare_copy(context, &work, to_side, from_side, &pageable);
    return result ? result : graph_add_node(graph, &work, out);
}

API(cuGraphAddMemsetNode, CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count,
    const CUDA_MEMSET_NODE_PARAMS *set, CUcontext of)
{
    ENTER_CONTEXT(context);
    (void)of;
    if (!set || (count && !dependencies) || !set->width || !set->height ||
        (set->elementSize != 1 && set->elementSize != 2 && set->elementSize != 4) || set->dst % set->elementSize ||
        !space_accessible(set->dst, (set->height - 1) * set->pitch + set->width * set->elementSize, true, NULL))
        return CUDA_ERROR_INVALID_VALUE;
    struct work work = {.kind = WORK_SET, .context = context};
    work.u.set.destination = set->dst;
    work.u.set.value = set->value;
    work.u.set.element = set->elementSize;
    work.u.set.width = set->width;
    work.u.set.rows = set->height;
    work.u.set.pitch = set->pitch;
    return graph_add_node(graph, &work, out);
}
