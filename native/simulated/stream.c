/* Streams. Work runs inline, in the call that submits it, as long as nothing before it is unfinished.
 *
 * Once something in a stream may take for ever (the kernel `spin`, a wait for an event or a value), it and
 * all that follows go to a thread of that stream, which ends when its queue is empty. The legacy default
 * stream and the blocking streams of a context wait for each other, as the real ones do.
 */
#include "simulated.h"

#include <signal.h>
#include <stdlib.h>
#include <time.h>

#define MAGIC 0x6d6165727473ULL

pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t queue_changed = PTHREAD_COND_INITIALIZER;
static struct stream *list;
static unsigned busy; /* pieces of work submitted and not completed, plus worker threads */
static uint64_t last_id;

static _Thread_local struct stream *per_thread;
static _Thread_local struct context *per_thread_context;

uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static struct stream *make(struct context *context, unsigned flags, int priority)
{
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return NULL;
    *stream = (struct stream){.next = list,
                              .magic = MAGIC,
                              .context = context,
                              .flags = flags,
                              .priority = priority,
                              .id = ++last_id,
                              .references = 1};
    stream->tail = &stream->head;
    list = stream;
    return stream;
}

static void put(struct stream *stream)
{
    if (--stream->references)
        return;
    struct stream **link = &list;
    while (*link != stream)
        link = &(*link)->next;
    *link = stream->next;
    graph_put(stream->capture);
    free(stream);
}

/* The stream a handle means: 0 and 1 the legacy default, 2 the calling thread's own. Under queue_lock. */
CUresult stream_resolve(struct context *context, CUstream handle, struct stream **out)
{
    if (!handle || handle == CU_STREAM_LEGACY) {
        if (!context->legacy)
            context->legacy = make(context, 0, 0);
        *out = context->legacy;
        return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (handle == CU_STREAM_PER_THREAD) {
        if (!per_thread || per_thread_context != context || per_thread->destroyed) {
            per_thread = make(context, 0, 0);
            per_thread_context = context;
            if (per_thread)
                per_thread->owned = true;
        }
        *out = per_thread;
        return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (struct stream *stream = list; stream; stream = stream->next)
        if (stream == handle && !stream->destroyed) {
            *out = stream;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_HANDLE;
}

static void complete(struct stream *stream, uint64_t sequence)
{
    stream->completed = sequence;
    busy--;
    pthread_cond_broadcast(&queue_changed);
}

static bool dependencies_met(const struct work *work)
{
    for (unsigned i = 0; i < work->after_count; i++)
        if (work->after[i].stream->completed < work->after[i].sequence)
            return false;
    return true;
}

static void drop_dependencies(struct work *work)
{
    for (unsigned i = 0; i < work->after_count; i++)
        put(work->after[i].stream);
    free(work->after);
    work->after = NULL;
    work->after_count = 0;
}

static void *work_off(void *argument)
{
    struct stream *stream = argument;

    pthread_mutex_lock(&queue_lock);
    while (stream->head) {
        struct work *work = stream->head;
        while (stream->completed != work->sequence - 1 || !dependencies_met(work))
            pthread_cond_wait(&queue_changed, &queue_lock);
        stream->head = work->next;
        if (!stream->head)
            stream->tail = &stream->head;
        drop_dependencies(work);
        pthread_mutex_unlock(&queue_lock);
        CUresult result = work_run(work);
        if (result)
            context_poison(work->context, result);
        pthread_mutex_lock(&queue_lock);
        complete(stream, work->sequence);
        work_drop(work);
        free(work);
    }
    stream->worker = false;
    put(stream);
    busy--;
    pthread_cond_broadcast(&queue_changed);
    pthread_mutex_unlock(&queue_lock);
    return NULL;
}

/* Under queue_lock. */
static CUresult start_worker(struct stream *stream)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;

    if (stream->worker)
        return CUDA_SUCCESS;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    stream->references++;
    stream->worker = true;
    busy++;
    int error = pthread_create(&thread, &attributes, work_off, stream);
    if (!error)
        pthread_setname_np(thread, "cuda-stream");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error) {
        stream->references--;
        stream->worker = false;
        busy--;
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    return CUDA_SUCCESS;
}

static bool unfinished(const struct stream *stream) { return stream->completed != stream->submitted; }

/* Which unfinished streams this one has to wait for: legacy against blocking. */
static bool orders(const struct stream *stream, const struct stream *other)
{
    if (other == stream || other->context != stream->context || !unfinished(other))
        return false;
    const struct stream *legacy = stream->context->legacy;
    if (stream == legacy)
        return !(other->flags & CU_STREAM_NON_BLOCKING);
    return other == legacy && !(stream->flags & CU_STREAM_NON_BLOCKING);
}

static CUresult collect_dependencies(struct stream *stream, struct work *work)
{
    unsigned count = 0;
    for (struct stream *other = list; other; other = other->next)
        count += orders(stream, other);
    if (!count)
        return CUDA_SUCCESS;
    work->after = calloc(count, sizeof *work->after);
    if (!work->after)
        return CUDA_ERROR_OUT_OF_MEMORY;
    for (struct stream *other = list; other; other = other->next)
        if (orders(stream, other)) {
            work->after[work->after_count].stream = other;
            work->after[work->after_count++].sequence = other->submitted;
            other->references++;
        }
    return CUDA_SUCCESS;
}

/* Under queue_lock. */
static CUresult enqueue(struct stream *stream, const struct work *work)
{
    struct work *queued = malloc(sizeof *queued);
    if (!queued)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *queued = *work;
    queued->next = NULL;
    CUresult result = start_worker(stream);
    if (result) {
        free(queued);
        return result;
    }
    *stream->tail = queued;
    stream->tail = &queued->next;
    return CUDA_SUCCESS;
}

/* The capture has ended: streams that had joined it run again. The graph's origin keeps its own reference. */
void stream_leave_capture(const struct graph *graph)
{
    for (struct stream *stream = list; stream; stream = stream->next)
        if (stream->capture == graph && !stream->capture_origin) {
            graph_put(stream->capture);
            stream->capture = NULL;
        }
}

static CUresult wait_for(struct stream *stream, uint64_t sequence)
{
    stream->references++;
    while (stream->completed < sequence)
        pthread_cond_wait(&queue_changed, &queue_lock);
    put(stream);
    return CUDA_SUCCESS;
}

/* Whether any stream of the context captures, so that the legacy stream may not be used. */
static bool captures(const struct context *context)
{
    for (const struct stream *stream = list; stream; stream = stream->next)
        if (stream->context == context && stream->capture && !(stream->flags & CU_STREAM_NON_BLOCKING))
            return true;
    return false;
}

/* Run the work now, queue it, or record it into the graph that the stream captures. Takes over what the
 * work refers to, also on failure. WAIT_DONE: come back only when it has run; refused while capturing. */
CUresult stream_submit(CUstream handle, struct work *work, enum wait wait)
{
    struct stream *stream;

    pthread_mutex_lock(&queue_lock);
    CUresult result = stream_resolve(work->context, handle, &stream);
    if (!result && stream->capture) {
        if (wait == WAIT_DONE) {
            stream->capture_invalid = true;
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        } else {
            graph_append(stream->capture, work);
        }
        work_drop(work);
        pthread_mutex_unlock(&queue_lock);
        return result;
    }
    if (!result && stream == work->context->legacy && captures(work->context))
        result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    if (!result)
        result = collect_dependencies(stream, work);
    if (result) {
        work_drop(work);
        pthread_mutex_unlock(&queue_lock);
        return result;
    }
    work->sequence = stream->submitted + 1;
    uint64_t sequence = work->sequence;
    if (unfinished(stream) || stream->worker || work->after_count || work_blocks(work)) {
        result = enqueue(stream, work);
        if (result) {
            drop_dependencies(work);
            work_drop(work);
        } else {
            stream->submitted++;
            busy++;
            if (wait)
                wait_for(stream, sequence);
        }
        pthread_mutex_unlock(&queue_lock);
    } else {
        stream->submitted++;
        stream->references++;
        busy++;
        pthread_mutex_unlock(&queue_lock);
        CUresult ran = work_run(work);
        if (ran)
            context_poison(work->context, ran);
        pthread_mutex_lock(&queue_lock);
        complete(stream, sequence);
        work_drop(work);
        put(stream);
        pthread_mutex_unlock(&queue_lock);
    }
    return result || !wait ? result : (CUresult)work->context->sticky;
}

CUresult stream_wait_idle(struct stream *stream)
{
    wait_for(stream, stream->submitted);
    return (CUresult)stream->context->sticky;
}

CUresult context_wait_idle(struct context *context)
{
    pthread_mutex_lock(&queue_lock);
    for (struct stream *stream = list; stream;) {
        if (stream->context == context && unfinished(stream)) {
            wait_for(stream, stream->submitted);
            stream = list; /* the list may have changed meanwhile */
        } else {
            stream = stream->next;
        }
    }
    pthread_mutex_unlock(&queue_lock);
    return (CUresult)context->sticky;
}

bool queue_wait_idle(int timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += (long)timeout_ms * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&queue_lock);
    while (busy && !pthread_cond_timedwait(&queue_changed, &queue_lock, &until)) {
    }
    bool idle = !busy;
    pthread_mutex_unlock(&queue_lock);
    return idle;
}

void streams_of_context_drop(struct context *context)
{
    pthread_mutex_lock(&queue_lock);
    for (struct stream *stream = list; stream;) {
        struct stream *next = stream->next;
        if (stream->context == context && stream != context->legacy && !stream->destroyed) {
            stream->destroyed = true; /* another thread's own stream stays: that thread still points to it */
            if (!stream->owned)
                put(stream);
            next = list;
        }
        stream = next;
    }
    pthread_mutex_unlock(&queue_lock);
}

static CUresult create(CUstream *out, unsigned flags, int priority)
{
    ENTER_CONTEXT(context);
    if (!out || flags > CU_STREAM_NON_BLOCKING)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&queue_lock);
    *out = make(context, flags, priority);
    pthread_mutex_unlock(&queue_lock);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API(cuStreamCreate, CUstream *out, unsigned flags) { return create(out, flags, 0); }

API(cuStreamCreateWithPriority, CUstream *out, unsigned flags, int priority) { return create(out, flags, priority); }

API(cuStreamDestroy_v2, CUstream handle)
{
    ENTER_CONTEXT(context);
    struct stream *stream;
    if (!handle || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD)
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&queue_lock);
    CUresult result = stream_resolve(context, handle, &stream);
    if (!result) {
        stream->destroyed = true; /* work already submitted is still done */
        put(stream);
    }
    pthread_mutex_unlock(&queue_lock);
    return result;
}

API(cuStreamSynchronize, CUstream handle)
{
    ENTER_CONTEXT(context);
    struct stream *stream;
    pthread_mutex_lock(&queue_lock);
    CUresult result = stream_resolve(context, handle, &stream);
    if (!result && stream->capture) {
        stream->capture_invalid = true;
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (!result)
        result = stream_wait_idle(stream);
    pthread_mutex_unlock(&queue_lock);
    return result;
}

API(cuStreamQuery, CUstream handle)
{
    ENTER_CONTEXT(context);
    struct stream *stream;
    pthread_mutex_lock(&queue_lock);
    CUresult result = stream_resolve(context, handle, &stream);
    if (!result && stream->capture)
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (!result && unfinished(stream))
        result = CUDA_ERROR_NOT_READY;
    pthread_mutex_unlock(&queue_lock);
    return result;
}

/* What is asked of a stream without doing anything to it. */
static CUresult look(CUstream handle, struct stream *out)
{
    ENTER_CONTEXT(context);
    struct stream *stream;
    pthread_mutex_lock(&queue_lock);
    CUresult result = stream_resolve(context, handle, &stream);
    if (!result)
        *out = *stream;
    pthread_mutex_unlock(&queue_lock);
    return result;
}

API(cuStreamGetFlags, CUstream handle, unsigned *flags)
{
    struct stream stream;
    CUresult result = flags ? look(handle, &stream) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *flags = stream.flags;
    return result;
}

API(cuStreamGetPriority, CUstream handle, int *priority)
{
    struct stream stream;
    CUresult result = priority ? look(handle, &stream) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *priority = stream.priority;
    return result;
}

API(cuStreamGetId, CUstream handle, unsigned long long *id)
{
    struct stream stream;
    CUresult result = id ? look(handle, &stream) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *id = stream.id;
    return result;
}

API(cuStreamGetCtx, CUstream handle, CUcontext *context)
{
    struct stream stream;
    CUresult result = context ? look(handle, &stream) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *context = stream.context;
    return result;
}

API(cuStreamGetCtx_v2, CUstream handle, CUcontext *context, void **green)
{
    if (green)
        *green = NULL;
    return cuStreamGetCtx(handle, context);
}

API(cuStreamGetDevice, CUstream handle, CUdevice *device)
{
    struct stream stream;
    CUresult result = device ? look(handle, &stream) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *device = stream.context->device;
    return result;
}
