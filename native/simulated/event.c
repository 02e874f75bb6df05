/* Events: marks in a stream, with the time at which it was passed. */
#include "simulated.h"

#include <stdlib.h>

#define MAGIC 0x746e657665ULL

/* Under queue_lock. */
void event_put(struct event *event)
{
    if (!--event->references) {
        graph_put(event->captured);
        event->magic = 0;
        free(event);
    }
}

API(cuEventCreate, CUevent *out, unsigned flags)
{
    ENTER_CONTEXT(context);
    if (!out || flags > 7)
        return CUDA_ERROR_INVALID_VALUE;
    if (flags & 4) /* between processes: not simulated */
        return CUDA_ERROR_NOT_SUPPORTED;
    struct event *event = calloc(1, sizeof *event);
    if (!event)
        return CUDA_ERROR_OUT_OF_MEMORY;
    event->magic = MAGIC;
    event->flags = flags;
    event->references = 1;
    *out = event;
    return CUDA_SUCCESS;
}

API(cuEventDestroy_v2, CUevent event)
{
    ENTER();
    if (!event || event->magic != MAGIC)
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&queue_lock);
    event_put(event);
    pthread_mutex_unlock(&queue_lock);
    return CUDA_SUCCESS;
}

API(cuEventRecord, CUevent event, CUstream handle)
{
    ENTER_CONTEXT(context);
    struct stream *stream;
    if (!event || event->magic != MAGIC)
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&queue_lock);
    CUresult result = stream_resolve(context, handle, &stream);
    if (result) {
        pthread_mutex_unlock(&queue_lock);
        return result;
    }
    graph_put(event->captured);
    event->captured = NULL;
    if (stream->capture) { /* a mark inside the graph: it tells which graph a waiting stream joins */
        event->captured = stream->capture;
        stream->capture->references++;
        pthread_mutex_unlock(&queue_lock);
        return CUDA_SUCCESS;
    }
    struct work work = {.kind = WORK_RECORD, .context = context};
    work.u.event.event = event;
    work.u.event.record = ++event->recorded;
    event->references++;
    pthread_mutex_unlock(&queue_lock);
    return stream_submit(handle, &work, WAIT_NOT);
}

API(cuEventRecordWithFlags, CUevent event, CUstream handle, unsigned flags)
{
    return flags > 1 ? CUDA_ERROR_INVALID_VALUE : cuEventRecord(event, handle);
}

API(cuEventQuery, CUevent event)
{
    ENTER();
    if (!event || event->magic != MAGIC)
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&queue_lock);
    CUresult result = event->captured                      ? CUDA_ERROR_CAPTURED_EVENT
                      : event->completed < event->recorded ? CUDA_ERROR_NOT_READY
                                                           : CUDA_SUCCESS;
    pthread_mutex_unlock(&queue_lock);
    return result;
}

API(cuEventSynchronize, CUevent event)
{
    ENTER();
    if (!event || event->magic != MAGIC)
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&queue_lock);
    CUresult result = event->captured ? CUDA_ERROR_CAPTURED_EVENT : CUDA_SUCCESS;
    if (!result) {
        uint64_t record = event->recorded;
        event->references++;
        while (event->completed < record)
            pthread_cond_wait(&queue_changed, &queue_lock);
        event_put(event);
    }
    pthread_mutex_unlock(&queue_lock);
    return result;
}

API(cuEventElapsedTime_v2, float *milliseconds, CUevent start, CUevent end)
{
    ENTER();
    if (!milliseconds)
        return CUDA_ERROR_INVALID_VALUE;
    if (!start || !end || start->magic != MAGIC || end->magic != MAGIC ||
        ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING))
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&queue_lock);
    CUresult result = CUDA_SUCCESS;
    if (!start->recorded || !end->recorded)
        result = CUDA_ERROR_INVALID_HANDLE;
    else if (start->completed < start->recorded || end->completed < end->recorded)
        result = CUDA_ERROR_NOT_READY;
    else
        *milliseconds = (float)((double)(int64_t)(end->when - start->when) / 1e6);
    pthread_mutex_unlock(&queue_lock);
    return result;
}
ALIAS(cuEventElapsedTime_v2, cuEventElapsedTime, float *milliseconds, CUevent start, CUevent end);

API(cuStreamWaitEvent, CUstream handle, CUevent event, unsigned flags)
{
    ENTER_CONTEXT(context);
    struct stream *stream;
    (void)flags;
    if (!event || event->magic != MAGIC)
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&queue_lock);
    CUresult result = stream_resolve(context, handle, &stream);
    if (result || event->captured) { /* a stream that waits for a captured event joins that capture */
        if (!result && !stream->capture) {
            stream->capture = event->captured;
            stream->capture->references++;
            stream->capture_origin = false;
        }
        pthread_mutex_unlock(&queue_lock);
        return result;
    }
    struct work work = {.kind = WORK_AWAIT, .context = context};
    work.u.event.event = event;
    work.u.event.record = event->recorded;
    event->references++;
    pthread_mutex_unlock(&queue_lock);
    return stream_submit(handle, &work, WAIT_NOT);
}
