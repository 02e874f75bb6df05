/* Many threads use one GPU while another process checkpoints this one: each checks its own sums all the while.
 * Usage: stress THREADS; ends when its standard input does, with the number of rounds on standard output. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../simulated/abi.h"

CUresult cuInit(unsigned flags);
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device);
CUresult cuCtxSetCurrent(CUcontext context);
CUresult cuModuleLoadData(CUmodule *module, const void *image);
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name);
CUresult cuStreamCreate(CUstream *stream, unsigned flags);
CUresult cuStreamSynchronize(CUstream stream);
CUresult cuStreamDestroy_v2(CUstream stream);
CUresult cuEventCreate(CUevent *event, unsigned flags);
CUresult cuEventRecord(CUevent event, CUstream stream);
CUresult cuEventSynchronize(CUevent event);
CUresult cuEventDestroy_v2(CUevent event);
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size);
CUresult cuMemFree_v2(CUdeviceptr address);
CUresult cuMemsetD32Async(CUdeviceptr address, unsigned value, size_t count, CUstream stream);
CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size);
CUresult cuMemAddressReserve(CUdeviceptr *out, size_t size, size_t alignment, CUdeviceptr at, unsigned long long flags);
CUresult cuMemAddressFree(CUdeviceptr address, size_t size);
CUresult cuMemCreate(CUmemGenericAllocationHandle *out, size_t size, const CUmemAllocationProp *p,
                     unsigned long long f);
CUresult cuMemMap(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long f);
CUresult cuMemSetAccess(CUdeviceptr at, size_t size, const CUmemAccessDesc *access, size_t count);
CUresult cuMemUnmap(CUdeviceptr at, size_t size);
CUresult cuMemRelease(CUmemGenericAllocationHandle handle);
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void **parameters, void **extra);

#define OK(call)                                                                \
    do {                                                                        \
        CUresult error = (call);                                                \
        if (error) {                                                            \
            fprintf(stderr, "line %d: %s: error %d\n", __LINE__, #call, error); \
            exit(1);                                                            \
        }                                                                       \
    } while (0)

enum { MIB = 1 << 20, WORDS = MIB };

static CUcontext context;
static CUfunction add_one, sum;
static int stop;
static unsigned long rounds;

static void check(CUdeviceptr memory, CUstream stream, unsigned start)
{
    CUdeviceptr out;
    CUevent event;
    uint64_t words = WORDS, total = 0;
    void *add_arguments[] = {&memory, &words}, *sum_arguments[] = {&memory, &words, &out};

    OK(cuMemAlloc_v2(&out, 8));
    OK(cuEventCreate(&event, 0));
    OK(cuMemsetD32Async(memory, start, WORDS, stream));
    OK(cuLaunchKernel(add_one, 1, 1, 1, 1, 1, 1, 0, stream, add_arguments, NULL));
    OK(cuLaunchKernel(sum, 1, 1, 1, 1, 1, 1, 0, stream, sum_arguments, NULL));
    OK(cuEventRecord(event, stream));
    OK(cuEventSynchronize(event));
    OK(cuStreamSynchronize(stream));
    OK(cuMemcpyDtoH_v2(&total, out, 8));
    if (total != (uint64_t)(start + 1) * WORDS) {
        fprintf(stderr, "sum %llu of %u\n", (unsigned long long)total, start);
        exit(1);
    }
    OK(cuEventDestroy_v2(event));
    OK(cuMemFree_v2(out));
}

static void *work(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument * 1000;
    const CUmemAllocationProp properties = {.type = 1, .requestedHandleTypes = 1, .location = {1, 0}};
    const CUmemAccessDesc access = {{1, 0}, 3};

    OK(cuCtxSetCurrent(context));
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        CUstream stream;
        CUdeviceptr native, mapped;
        CUmemGenericAllocationHandle handle;
        OK(cuStreamCreate(&stream, 1));
        OK(cuMemAlloc_v2(&native, 4 * MIB));
        check(native, stream, seed++);
        OK(cuMemAddressReserve(&mapped, 4 * MIB, 0, 0, 0));
        OK(cuMemCreate(&handle, 4 * MIB, &properties, 0));
        OK(cuMemMap(mapped, 4 * MIB, 0, handle, 0));
        OK(cuMemSetAccess(mapped, 4 * MIB, &access, 1));
        OK(cuMemRelease(handle));
        check(mapped, stream, seed++);
        OK(cuMemUnmap(mapped, 4 * MIB));
        OK(cuMemAddressFree(mapped, 4 * MIB));
        OK(cuMemFree_v2(native));
        OK(cuStreamDestroy_v2(stream));
        __atomic_fetch_add(&rounds, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

int main(int count, char **words)
{
    pthread_t threads[16];
    int n = count > 1 ? atoi(words[1]) : 4;
    CUmodule module;
    char byte;

    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    OK(cuModuleLoadData(&module, "KYBERNATE-SIMULATED"));
    OK(cuModuleGetFunction(&add_one, module, "add_one_u32"));
    OK(cuModuleGetFunction(&sum, module, "sum_u32"));
    for (int i = 0; i < n && i < 16; i++) pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)(i + 1));
    puts("ready");
    fflush(stdout);
    while (read(0, &byte, 1) > 0) {
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < n && i < 16; i++) pthread_join(threads[i], NULL);
    printf("%lu\n", rounds);
    return 0;
}
