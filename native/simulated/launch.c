/* Launches: kernels, host functions, and the small operations on a word of memory. */
#include "simulated.h"

#include <string.h>

/* Copy the arguments out of either form the caller may use. */
static CUresult take_arguments(struct work *work, void **parameters, void **extra)
{
    const struct kernel *kernel = work->u.launch.kernel;
    const unsigned char *packed = NULL;
    size_t size = 0, offset = 0;

    if (parameters && extra)
        return CUDA_ERROR_INVALID_VALUE;
    for (void **item = extra; item && *item; item += 2) {
        if (*item == CU_LAUNCH_PARAM_BUFFER_POINTER)
            packed = item[1];
        else if (*item == CU_LAUNCH_PARAM_BUFFER_SIZE)
            size = *(size_t *)item[1];
    }
    if (kernel->count && !parameters && !packed)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < kernel->count; i++) {
        const void *from;
        if (parameters) {
            from = parameters[i];
        } else {
            offset = round_up(offset, kernel->bytes[i]);
            if (offset + kernel->bytes[i] > size)
                return CUDA_ERROR_INVALID_VALUE;
            from = packed + offset;
            offset += kernel->bytes[i];
        }
        if (!from)
            return CUDA_ERROR_INVALID_VALUE;
        memcpy(&work->u.launch.arguments[i], from, kernel->bytes[i]);
    }
    return CUDA_SUCCESS;
}

API(cuLaunchKernel, CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
    unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **parameters, void **extra)
{
    ENTER_CONTEXT(context);
    (void)shared;
    struct work work = {.kind = WORK_KERNEL, .context = context};

    work.u.launch.kernel = function_kernel(function);
    if (!work.u.launch.kernel)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!grid_x || !grid_y || !grid_z || !block_x || !block_y || !block_z || block_x > 1024 || block_y > 1024 ||
        block_z > 64 || (uint64_t)block_x * block_y * block_z > 1024)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = take_arguments(&work, parameters, extra);
    return result ? result : stream_submit(stream, &work, WAIT_NOT);
}

API(cuLaunchKernelEx, const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra)
{
    if (!config)
        return CUDA_ERROR_INVALID_VALUE;
    return cuLaunchKernel(function, config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX,
                          config->blockDimY, config->blockDimZ, config->sharedMemBytes, config->hStream, parameters,
                          extra);
}

API(cuLaunchCooperativeKernel, CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
    unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **parameters)
{
    return cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, parameters,
                          NULL);
}

API(cuLaunchHostFunc, CUstream stream, CUhostFn function, void *data)
{
    ENTER_CONTEXT(context);
    if (!function)
        return CUDA_ERROR_INVALID_VALUE;
    struct work work = {.kind = WORK_HOST, .context = context};
    work.u.host.function = function;
    work.u.host.data = data;
    return stream_submit(stream, &work, WAIT_NOT);
}

API(cuStreamAddCallback, CUstream stream, void (*callback)(CUstream, CUresult, void *), void *data, unsigned flags)
{
    ENTER_CONTEXT(context);
    if (!callback || flags)
        return CUDA_ERROR_INVALID_VALUE;
    struct work work = {.kind = WORK_CALLBACK, .context = context};
    work.u.host.callback = callback;
    work.u.host.stream = stream;
    work.u.host.data = data;
    return stream_submit(stream, &work, WAIT_NOT);
}

static CUresult word(CUstream stream, enum work_kind kind, CUdeviceptr address, uint64_t value, unsigned flags,
                     unsigned bytes)
{
    ENTER_CONTEXT(context);
    if (address % bytes || !space_accessible(address, bytes, kind == WORK_WRITE_VALUE, NULL))
        return CUDA_ERROR_INVALID_VALUE;
    struct work work = {.kind = kind, .context = context};
    work.u.value.address = address;
    work.u.value.value = value;
    work.u.value.flags = flags;
    work.u.value.bytes = bytes;
    return stream_submit(stream, &work, WAIT_NOT);
}

API(cuStreamWriteValue32_v2, CUstream stream, CUdeviceptr address, uint32_t value, unsigned flags)
{
    return word(stream, WORK_WRITE_VALUE, address, value, flags, 4);
}

API(cuStreamWriteValue64_v2, CUstream stream, CUdeviceptr address, uint64_t value, unsigned flags)
{
    return word(stream, WORK_WRITE_VALUE, address, value, flags, 8);
}

API(cuStreamWaitValue32_v2, CUstream stream, CUdeviceptr address, uint32_t value, unsigned flags)
{
    return word(stream, WORK_WAIT_VALUE, address, value, flags, 4);
}

API(cuStreamWaitValue64_v2, CUstream stream, CUdeviceptr address, uint64_t value, unsigned flags)
{
    return word(stream, WORK_WAIT_VALUE, address, value, flags, 8);
}
