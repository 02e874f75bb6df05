/* Waits until the GPU has finished what the process gave it, with a timeout.
 *
 * The driver has no synchronisation with a timeout, so a thread of its own waits and we wait for the thread. One that
 * a never-ending kernel holds up is left behind (it ends with the kernel); until it does, further pauses wait for it
 * first.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "contexts.h"
#include "drain.h"
#include "driver.h"
#include "gate.h"
#include "process.h"

#define UNFINISHED "GPU work did not finish in time (a kernel or copy is still running)"

struct job {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct kyb_contexts contexts;
    int result;
    bool done, left;
};

static _Atomic bool one_left_behind;

static void *synchronise(void *argument)
{
    struct job *job = argument;
    int result = CUDA_SUCCESS;
    kyb_gate_exempt();
    for (size_t i = 0; i < job->contexts.count && result == CUDA_SUCCESS; i++) {
        void *popped;
        result = kyb_driver.cuCtxPushCurrent_v2(job->contexts.list[i]);
        if (result != CUDA_SUCCESS) break;
        result = KYB_DRIVER(cuCtxSynchronize, (void), ());
        kyb_driver.cuCtxPopCurrent_v2(&popped);
    }
    pthread_mutex_lock(&job->lock);
    job->result = result;
    job->done = true;
    bool left = job->left;
    pthread_cond_signal(&job->changed);
    pthread_mutex_unlock(&job->lock);
    if (left) {
        atomic_store(&one_left_behind, false);
        free(job);
    }
    return NULL;
}

/* It ends a moment after the work that held it up; to answer busy in that moment would be wrong. */
static bool earlier_one_ended(int64_t deadline_ns)
{
    long pause = 5000;
    while (atomic_load(&one_left_behind)) {
        if (kyb_now_ns() >= deadline_ns) return false;
        nanosleep(&(struct timespec){.tv_nsec = pause}, NULL);
        if (pause < 500000) pause *= 2;
    }
    return true;
}

bool kyb_gpu_idle(int64_t deadline_ns, char *reason, size_t size)
{
    if (!earlier_one_ended(deadline_ns)) {
        snprintf(reason, size, UNFINISHED);
        return false;
    }
    struct job *job = calloc(1, sizeof *job);
    if (!job) {
        snprintf(reason, size, "no memory to wait for the GPU");
        return false;
    }
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&job->lock, NULL);
    pthread_cond_init(&job->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    kyb_contexts(&job->contexts);
    pthread_t thread;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    int failed = pthread_create(&thread, &detached, synchronise, job); /* inherits our signal mask: all blocked */
    pthread_attr_destroy(&detached);
    if (failed) {
        free(job);
        snprintf(reason, size, "can't start a thread to wait for the GPU");
        return false;
    }
    struct timespec until = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
    pthread_mutex_lock(&job->lock);
    int waited = 0;
    while (!job->done && waited == 0) waited = pthread_cond_timedwait(&job->changed, &job->lock, &until);
    bool done = job->done;
    int result = job->result;
    if (!done) {
        job->left = true;
        atomic_store(&one_left_behind, true);
    }
    pthread_mutex_unlock(&job->lock);
    if (!done) {
        snprintf(reason, size, UNFINISHED);
        return false;
    }
    free(job);
    if (result == CUDA_SUCCESS) return true;
    kyb_cuda_problem(result, "cuCtxSynchronize", reason, size);
    return false;
}
