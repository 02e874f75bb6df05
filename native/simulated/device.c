/* What the device says of itself: name, identity, attributes. */
#include "simulated.h"

#include <stdio.h>
#include <string.h>

#define DEVICE_NAME "Kybernate simulated GPU"

API(cuDeviceGetCount, int *count)
{
    ENTER();
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    *count = gpu_count;
    return CUDA_SUCCESS;
}

API(cuDeviceGet, CUdevice *device, int ordinal)
{
    ENTER();
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    if (!gpu_valid(ordinal))
        return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

API(cuDeviceGetName, char *name, int length, CUdevice device)
{
    ENTER();
    if (!name || length <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    snprintf(name, (size_t)length, "%s", DEVICE_NAME);
    return CUDA_SUCCESS;
}

API(cuDeviceGetUuid_v2, CUuuid *uuid, CUdevice device)
{
    ENTER();
    if (!uuid)
        return CUDA_ERROR_INVALID_VALUE;
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *uuid = gpus[device].uuid;
    return CUDA_SUCCESS;
}
ALIAS(cuDeviceGetUuid_v2, cuDeviceGetUuid, CUuuid *uuid, CUdevice device);

API(cuDeviceTotalMem_v2, size_t *bytes, CUdevice device)
{
    ENTER();
    if (!bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *bytes = gpu_total(&gpus[device]);
    return CUDA_SUCCESS;
}

static const struct {
    int attribute, value;
} attributes[] = {
    {1, 1024},           /* threads per block */
    {2, 1024},           /* block x, y, z */
    {3, 1024},        {4, 64},    {5, 0x7fffffff},     /* grid x, y, z */
    {6, 65535},       {7, 65535}, {8, 48 << 10},       /* shared memory per block, bytes */
    {9, 64 << 10},       /* constant memory, bytes */
    {10, 32},            /* warp */
    {11, 0x7fffffff},    /* pitch, bytes */
    {12, 65536},         /* registers per block */
    {13, 1000000},       /* clock, kHz */
    {14, 512},           /* texture alignment */
    {15, 1},             /* overlap */
    {16, 16},            /* multiprocessors */
    {19, 1},             /* can map host memory */
    {31, 1},             /* concurrent kernels */
    {34, 0},             /* PCI device */
    {36, 1000000},       /* memory clock, kHz */
    {37, 1024},          /* bus width, bits */
    {38, 4 << 20},       /* L2, bytes */
    {39, 2048},          /* threads per multiprocessor */
    {40, 2},             /* copy engines */
    {41, 1},             /* unified addressing */
    {51, 32},            /* texture pitch alignment */
    {75, 9},             /* compute capability 9.0 */
    {76, 0},          {78, 1},             /* stream priorities */
    {81, 228 << 10},     /* shared memory per multiprocessor, bytes */
    {82, 65536},         /* registers per multiprocessor */
    {83, 1},             /* managed memory */
    {89, 1},             /* concurrent managed access */
    {91, 1},             /* host pointer usable for registered memory */
    {95, 1},             /* cooperative launch */
    {97, 227 << 10},     /* shared memory per block, opt in, bytes */
    {99, 1},             /* host register */
    {102, 1},            /* virtual memory management */
    {103, 1},            /* export as a file descriptor */
    {106, 32},           /* blocks per multiprocessor */
    {110, 1},            /* GPUDirect RDMA with virtual memory management */
    {115, 1},            /* memory pools */
    {116, 1},            /* GPUDirect RDMA */
    {119, 0},            /* pool handle types: none */
};

API(cuDeviceGetAttribute, int *value, int attribute, CUdevice device)
{
    ENTER();
    if (!value || attribute <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *value = 0; /* whatever isn't listed: no */
    if (attribute == 33) /* PCI bus */
        *value = device + 1;
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++)
        if (attributes[i].attribute == attribute)
            *value = attributes[i].value;
    return CUDA_SUCCESS;
}

API(cuDeviceComputeCapability, int *major, int *minor, CUdevice device)
{
    ENTER();
    if (!major || !minor)
        return CUDA_ERROR_INVALID_VALUE;
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *major = 9;
    *minor = 0;
    return CUDA_SUCCESS;
}

API(cuDeviceGetPCIBusId, char *text, int length, CUdevice device)
{
    ENTER();
    if (!text || length < 13)
        return CUDA_ERROR_INVALID_VALUE;
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    snprintf(text, (size_t)length, "0000:%02X:00.0", (unsigned)device + 1);
    return CUDA_SUCCESS;
}

API(cuDeviceGetByPCIBusId, CUdevice *device, const char *text)
{
    ENTER();
    unsigned domain = 0, bus = 0, slot = 0;
    if (!device || !text)
        return CUDA_ERROR_INVALID_VALUE;
    if (sscanf(text, "%x:%x:%x", &domain, &bus, &slot) != 3 && sscanf(text, "%x:%x", &bus, &slot) != 2)
        return CUDA_ERROR_INVALID_VALUE;
    if (!gpu_valid((int)bus - 1))
        return CUDA_ERROR_INVALID_DEVICE;
    *device = (int)bus - 1;
    return CUDA_SUCCESS;
}

API(cuDeviceCanAccessPeer, int *can, CUdevice device, CUdevice peer)
{
    ENTER();
    if (!can)
        return CUDA_ERROR_INVALID_VALUE;
    if (!gpu_valid(device) || !gpu_valid(peer))
        return CUDA_ERROR_INVALID_DEVICE;
    *can = 0;
    return CUDA_SUCCESS;
}

API(cuDeviceGetLuid, char *luid, unsigned *mask, CUdevice device)
{
    ENTER();
    if (!luid || !mask || !gpu_valid(device))
        return CUDA_ERROR_INVALID_VALUE;
    memset(luid, 0, 8);
    *mask = 0;
    return CUDA_ERROR_NOT_SUPPORTED;
}
