/* What a piece of work does when its turn comes. Runs with no lock held. */
#include "simulated.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void copy(const struct work *work)
{
    char *to = (char *)(uintptr_t)work->u.copy.destination;
    const char *from = (const char *)(uintptr_t)work->u.copy.source;
    uint64_t began = clock_ns();

    for (size_t row = 0; row < work->u.copy.rows; row++)
        memmove(to + row * work->u.copy.destination_pitch, from + row * work->u.copy.source_pitch, work->u.copy.width);
    if (work->u.copy.crosses_link)
        link_delay(work->u.copy.width * work->u.copy.rows, began);
}

static void set(const struct work *work)
{
    uint32_t value = work->u.set.value;
    for (size_t row = 0; row < work->u.set.rows; row++) {
        char *to = (char *)(uintptr_t)work->u.set.destination + row * work->u.set.pitch;
        size_t n = work->u.set.width;
        if (work->u.set.element == 1) {
            memset(to, (int)value, n);
        } else if (work->u.set.element == 2) {
            uint16_t *words = (uint16_t *)(void *)to;
            for (size_t i = 0; i < n; i++)
                words[i] = (uint16_t)value;
        } else {
            uint32_t *words = (uint32_t *)(void *)to;
            for (size_t i = 0; i < n; i++)
                words[i] = value;
        }
    }
}

/* A look at memory that the host may be writing to: a GPU's, which no thread sanitizer is to see. */
__attribute__((no_sanitize("thread"), noinline)) uint64_t word_look(uint64_t address, unsigned bytes)
{
    return bytes == 8 ? *(const volatile uint64_t *)(uintptr_t)address : *(const volatile uint32_t *)(uintptr_t)address;
}

static bool value_there(const struct work *work)
{
    uint64_t now = word_look(work->u.value.address, work->u.value.bytes);
    uint64_t wanted = work->u.value.value;
    switch (work->u.value.flags & 3) {
    case 0: /* greater or equal, cyclically */
        return work->u.value.bytes == 8 ? (int64_t)(now - wanted) >= 0 : (int32_t)(uint32_t)(now - wanted) >= 0;
    case 1:
        return now == wanted;
    case 2:
        return (now & wanted) != 0;
    default:
        return ~(now | wanted) != 0;
    }
}

static void event_done(struct event *event, uint64_t record)
{
    pthread_mutex_lock(&queue_lock);
    if (record > event->completed) {
        event->completed = record;
        event->when = clock_ns();
    }
    pthread_cond_broadcast(&queue_changed);
    pthread_mutex_unlock(&queue_lock);
}

static CUresult run_graph(const struct work *work)
{
    /* A launched graph doesn't change: the work holds its own reference. */
    CUresult result = CUDA_SUCCESS;
    for (struct work *item = work->u.graph.graph->first; item && !result; item = item->next)
        result = work_run(item);
    return result;
}

CUresult work_run(struct work *work)
{
    const struct timespec moment = {.tv_nsec = 100000};

    if (work->context->sticky && work->kind != WORK_RECORD && work->kind != WORK_CALLBACK)
        return (CUresult)work->context->sticky;
    switch (work->kind) {
    case WORK_KERNEL:
        return work->u.launch.kernel->run(work->u.launch.arguments) ? CUDA_SUCCESS : CUDA_ERROR_ILLEGAL_ADDRESS;
    case WORK_COPY:
        copy(work);
        break;
    case WORK_SET:
        set(work);
        break;
    case WORK_HOST:
        work->u.host.function(work->u.host.data);
        break;
    case WORK_CALLBACK:
        work->u.host.callback(work->u.host.stream, (CUresult)work->context->sticky, work->u.host.data);
        break;
    case WORK_RECORD:
        event_done(work->u.event.event, work->u.event.record);
        break;
    case WORK_AWAIT:
        pthread_mutex_lock(&queue_lock);
        while (work->u.event.event->completed < work->u.event.record)
            pthread_cond_wait(&queue_changed, &queue_lock);
        pthread_mutex_unlock(&queue_lock);
        break;
    case WORK_FREE:
        pthread_mutex_lock(&memory_lock);
        memory_free(work->u.address);
        pthread_mutex_unlock(&memory_lock);
        break;
    case WORK_GRAPH:
        return run_graph(work);
    case WORK_WRITE_VALUE:
        if (work->u.value.bytes == 8)
            __atomic_store_n((uint64_t *)(uintptr_t)work->u.value.address, work->u.value.value, __ATOMIC_RELEASE);
        else
            __atomic_store_n((uint32_t *)(uintptr_t)work->u.value.address, (uint32_t)work->u.value.value,
                             __ATOMIC_RELEASE);
        break;
    case WORK_WAIT_VALUE:
        while (!value_there(work))
            nanosleep(&moment, NULL);
        break;
    }
    return CUDA_SUCCESS;
}

/* Whether it may take for ever and so needs a thread. Under queue_lock. */
bool work_blocks(const struct work *work)
{
    if (work->kind == WORK_KERNEL)
        return work->u.launch.kernel->blocks;
    if (work->kind == WORK_AWAIT)
        return work->u.event.event->completed < work->u.event.record;
    if (work->kind == WORK_WAIT_VALUE)
        return true;
    if (work->kind == WORK_GRAPH)
        for (const struct work *item = work->u.graph.graph->first; item; item = item->next)
            if (work_blocks(item))
                return true;
    return false;
}

/* Give back what the work holds. Under queue_lock. */
void work_drop(struct work *work)
{
    if (work->kind == WORK_RECORD || work->kind == WORK_AWAIT)
        event_put(work->u.event.event);
    if (work->kind == WORK_GRAPH)
        graph_put(work->u.graph.graph);
}
