// A kernel that ends only when the host says so (at SIGTERM): a pause must answer busy after its timeout.
#include "program.cuh"

__global__ void wait_for_host(volatile int *ended, unsigned long long *turns)
{
    while (!*ended)
        atomicAdd(turns, 1ULL);
}

int main(void)
{
    long step = 0;
    int *ended, *ended_device;
    unsigned long long *turns;
    cudaStream_t waiting;

    begin_program();
    struct array busy = make_array((size_t)512 << 20, 1);
    CHECK(cudaHostAlloc((void **)&ended, sizeof *ended, cudaHostAllocMapped));
    *(volatile int *)ended = 0;
    CHECK(cudaHostGetDevicePointer((void **)&ended_device, ended, 0));
    CHECK(cudaMalloc((void **)&turns, sizeof *turns));
    CHECK(cudaMemset(turns, 0, sizeof *turns));
    CHECK(cudaStreamCreateWithFlags(&waiting, cudaStreamNonBlocking));
    // One launch of each kernel before, so that no lazy loading waits for the endless one.
    cudaStream_t working;
    CHECK(cudaStreamCreateWithFlags(&working, cudaStreamNonBlocking));
    advance_array(&busy, working);
    check_array(&busy, working, "the array stepped", step);
    wait_for_host<<<1, 1, 0, waiting>>>(ended_device, turns);
    CHECK(cudaGetLastError());
    // A pause that gives up reopens the gates; steps on the other stream must go on then.
    for (; !stopped; step++) {
        advance_array(&busy, working);
        check_array(&busy, working, "the array stepped", step);
        report(step);
    }
    *(volatile int *)ended = 1;
    CHECK(cudaStreamSynchronize(waiting));
    check_array(&busy, working, "the array at the end", step);
    finish(step);
    return 0;
}
