// What the CUDA C++ programs share: the loop's words on stdout and arrays with a closed formula. See program.py.
#pragma once

#include <cuda_runtime.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t stopped;

static void on_stop(int signal_number)
{
    (void)signal_number;
    stopped = 1;
}

static void begin_program(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_stop;
    action.sa_flags = SA_RESTART;
    sigaction(SIGTERM, &action, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);
}

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        cudaError_t error_ = (call);                                                                                   \
        if (error_ != cudaSuccess) {                                                                                   \
            printf("MISMATCH %s: %s\n", #call, cudaGetErrorString(error_));                                            \
            fflush(stdout);                                                                                            \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

static void mismatch(const char *where, long step, unsigned long long wrong)
{
    printf("MISMATCH step %ld: %llu words of %s differ\n", step, wrong, where);
    fflush(stdout);
    _exit(1);
}

static void report(long step)
{
    static struct timespec last;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double passed = (double)(now.tv_sec - last.tv_sec) + 1e-9 * (double)(now.tv_nsec - last.tv_nsec);
    if (passed < 0.02)
        return;
    last = now;
    printf("step %ld\n", step);
    fflush(stdout);
}

static void finish(long steps)
{
    printf("exact steps=%ld\n", steps);
    fflush(stdout);
}

#define STEP_MULTIPLIER 1664525u
#define STEP_INCREMENT 1013904223u

__global__ void fill_words(uint32_t *words, size_t count, uint32_t slope, uint32_t intercept)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
        words[i] = (uint32_t)i * slope + intercept;
}

__global__ void advance_words(uint32_t *words, size_t count)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
        words[i] = words[i] * STEP_MULTIPLIER + STEP_INCREMENT;
}

__global__ void compare_words(const uint32_t *words, size_t count, uint32_t slope, uint32_t intercept,
                              unsigned long long *wrong)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
        if (words[i] != (uint32_t)i * slope + intercept)
            atomicAdd(wrong, 1ULL);
}

// One array on the GPU and the two numbers that describe it; linear in the index at every step.
struct array {
    uint32_t *words;
    size_t count;
    uint32_t slope;
    uint32_t intercept;
    unsigned long long *wrong;
};

static struct array make_array(size_t bytes, uint32_t seed)
{
    struct array made;
    made.count = bytes / sizeof(uint32_t);
    made.slope = (2654435761u + 2u * seed) | 1u;
    made.intercept = seed * 40503u + 12345u;
    CHECK(cudaMalloc((void **)&made.words, bytes));
    CHECK(cudaMalloc((void **)&made.wrong, sizeof *made.wrong));
    fill_words<<<1024, 256>>>(made.words, made.count, made.slope, made.intercept);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    return made;
}

static void advance_array(struct array *array, cudaStream_t stream)
{
    advance_words<<<1024, 256, 0, stream>>>(array->words, array->count);
    CHECK(cudaGetLastError());
    array->slope *= STEP_MULTIPLIER;
    array->intercept = array->intercept * STEP_MULTIPLIER + STEP_INCREMENT;
}

static void check_array(struct array *array, cudaStream_t stream, const char *name, long step)
{
    unsigned long long wrong = 0;
    CHECK(cudaMemsetAsync(array->wrong, 0, sizeof *array->wrong, stream));
    compare_words<<<1024, 256, 0, stream>>>(array->words, array->count, array->slope, array->intercept, array->wrong);
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpyAsync(&wrong, array->wrong, sizeof wrong, cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamSynchronize(stream));
    if (wrong)
        mismatch(name, step, wrong);
}
