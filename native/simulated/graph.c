/* Stream capture and graphs: a graph is the list of the work that was captured, in order; a launch runs it again.
 * Of nodes built one by one there are copies and fills; they run in the order they were added, and can't be changed. */
#include "simulated.h"

#include <stdlib.h>

#define MAGIC 0x6870617267ULL

struct graph_exec {
    uint64_t magic;
    struct graph *graph;
    unsigned long long flags;
};

static uint64_t last_id;

struct graph *graph_new(void)
{
    struct graph *graph = calloc(1, sizeof *graph);
    if (graph) {
        graph->magic = MAGIC;
        graph->references = 1;
        graph->id = ++last_id;
    }
    return graph;
}

void graph_put(struct graph *graph)
{
    if (!graph || --graph->references)
        return;
    for (struct work *work = graph->first; work;) {
        struct work *next = work->next;
        work_drop(work);
        free(work);
        work = next;
    }
    graph->magic = 0;
    free(graph);
}

/* Adds a copy, with references of its own. */
struct work *graph_append(struct graph *graph, const struct work *work)
{
    struct work *copy = malloc(sizeof *copy);
    if (!copy)
        return NULL;
    *copy = *work;
    copy->next = NULL;
    if (copy->kind == WORK_RECORD || copy->kind == WORK_AWAIT)
        copy->u.event.event->references++;
    if (copy->kind == WORK_GRAPH)
        copy->u.graph.graph->references++;
    if (graph->last)
        graph->last->next = copy;
    else
        graph->first = copy;
    graph->last = copy;
    graph->count++;
    return copy;
}

CUresult graph_add_node(CUgraph graph, const struct work *work, CUgraphNode *out)
{
    if (!graph || graph->magic != MAGIC || !out)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&queue_lock);
    *out = (CUgraphNode)graph_append(graph, work);
    pthread_mutex_unlock(&queue_lock);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API(cuStreamBeginCapture_v2, CUstream handle, int mode)
{
    ENTER_CONTEXT(context);
    struct stream *stream;
    if (mode < 0 || mode > 2)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&queue_lock);
    CUresult result = stream_resolve(context, handle, &stream);
    if (!result && stream == context->legacy)
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (!result && stream->capture)
        result = CUDA_ERROR_ILLEGAL_STATE;
    if (!result) {
        stream->capture = graph_new();
        stream->capture_invalid = false;
        stream->capture_origin = true;
        result = stream->capture ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    }
    pthread_mutex_unlock(&queue_lock);
    return result;
}

/* No alias: it takes no mode, and a wrapper is found by the function's address. */
API(cuStreamBeginCapture, CUstream handle) { return cuStreamBeginCapture_v2(handle, 0); }

API(cuStreamEndCapture, CUstream handle, CUgraph *out)
{
    ENTER_CONTEXT(context);
    struct stream *stream;
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    *out = NULL;
    pthread_mutex_lock(&queue_lock);
    CUresult result = stream_resolve(context, handle, &stream);
    if (!result && !stream->capture)
        result = CUDA_ERROR_ILLEGAL_STATE;
    else if (!result && !stream->capture_origin)
        result = CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    if (!result) {
        if (stream->capture_invalid) {
            graph_put(stream->capture);
            result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        } else {
            *out = stream->capture;
            stream_leave_capture(stream->capture);
        }
        stream->capture = NULL;
    }
    pthread_mutex_unlock(&queue_lock);
    return result;
}

API(cuStreamIsCapturing, CUstream handle, int *status)
{
    ENTER_CONTEXT(context);
    struct stream *stream;
    if (!status)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&queue_lock);
    CUresult result = stream_resolve(context, handle, &stream);
    if (!result)
        *status = !stream->capture          ? CU_STREAM_CAPTURE_STATUS_NONE
                  : stream->capture_invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                            : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    pthread_mutex_unlock(&queue_lock);
    return result;
}

static CUresult capture_info(CUstream handle, int *status, uint64_t *id, CUgraph *graph)
{
    ENTER_CONTEXT(context);
    struct stream *stream;
    CUresult result = cuStreamIsCapturing(handle, status);
    if (result)
        return result;
    pthread_mutex_lock(&queue_lock);
    result = stream_resolve(context, handle, &stream);
    if (!result && stream->capture) {
        if (id)
            *id = stream->capture->id;
        if (graph)
            *graph = stream->capture;
    }
    pthread_mutex_unlock(&queue_lock);
    return result;
}

API(cuStreamGetCaptureInfo_v2, CUstream handle, int *status, uint64_t *id, CUgraph *graph,
    const CUgraphNode **dependencies, size_t *count)
{
    if (dependencies)
        *dependencies = NULL;
    if (count)
        *count = 0;
    return capture_info(handle, status, id, graph);
}

API(cuStreamGetCaptureInfo_v3, CUstream handle, int *status, uint64_t *id, CUgraph *graph,
    const CUgraphNode **dependencies, const void **edges, size_t *count)
{
    if (edges)
        *edges = NULL;
    return cuStreamGetCaptureInfo_v2(handle, status, id, graph, dependencies, count);
}

API(cuThreadExchangeStreamCaptureMode, int *mode)
{
    static _Thread_local int current;
    ENTER();
    if (!mode || *mode < 0 || *mode > 2)
        return CUDA_ERROR_INVALID_VALUE;
    int before = current;
    current = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

API(cuGraphCreate, CUgraph *out, unsigned flags)
{
    ENTER();
    if (!out || flags)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&queue_lock);
    *out = graph_new();
    pthread_mutex_unlock(&queue_lock);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API(cuGraphDestroy, CUgraph graph)
{
    ENTER();
    if (!graph || graph->magic != MAGIC)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&queue_lock);
    graph_put(graph);
    pthread_mutex_unlock(&queue_lock);
    return CUDA_SUCCESS;
}

/* Only how many there are; a node has no handle here. */
API(cuGraphGetNodes, CUgraph graph, CUgraphNode *nodes, size_t *count)
{
    ENTER();
    if (!graph || graph->magic != MAGIC || !count)
        return CUDA_ERROR_INVALID_VALUE;
    if (nodes)
        return CUDA_ERROR_NOT_SUPPORTED;
    *count = graph->count;
    return CUDA_SUCCESS;
}

API(cuGraphInstantiateWithFlags, CUgraphExec *out, CUgraph graph, unsigned long long flags)
{
    ENTER();
    if (!out || !graph || graph->magic != MAGIC)
        return CUDA_ERROR_INVALID_VALUE;
    struct graph_exec *exec = calloc(1, sizeof *exec);
    pthread_mutex_lock(&queue_lock);
    struct graph *copy = exec ? graph_new() : NULL;
    for (struct work *work = graph->first; copy && work; work = work->next)
        graph_append(copy, work);
    pthread_mutex_unlock(&queue_lock);
    if (!copy) {
        free(exec);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *exec = (struct graph_exec){MAGIC, copy, flags};
    *out = exec;
    return CUDA_SUCCESS;
}

API(cuGraphInstantiateWithParams, CUgraphExec *out, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *parameters)
{
    if (!parameters)
        return CUDA_ERROR_INVALID_VALUE;
    parameters->result_out = 0;
    parameters->hErrNode_out = NULL;
    return cuGraphInstantiateWithFlags(out, graph, parameters->flags);
}

API(cuGraphInstantiate_v2, CUgraphExec *out, CUgraph graph, CUgraphNode *bad, char *log, size_t size)
{
    if (bad)
        *bad = NULL;
    if (log && size)
        *log = 0;
    return cuGraphInstantiateWithFlags(out, graph, 0);
}

API(cuGraphExecGetFlags, CUgraphExec exec, uint64_t *flags)
{
    ENTER();
    if (!exec || exec->magic != MAGIC || !flags)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = exec->flags;
    return CUDA_SUCCESS;
}

API(cuGraphExecDestroy, CUgraphExec exec)
{
    ENTER();
    if (!exec || exec->magic != MAGIC)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&queue_lock);
    graph_put(exec->graph);
    pthread_mutex_unlock(&queue_lock);
    exec->magic = 0;
    free(exec);
    return CUDA_SUCCESS;
}

API(cuGraphUpload, CUgraphExec exec, CUstream stream)
{
    ENTER_CONTEXT(context);
    (void)stream;
    return exec && exec->magic == MAGIC ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(cuGraphLaunch, CUgraphExec exec, CUstream stream)
{
    ENTER_CONTEXT(context);
    if (!exec || exec->magic != MAGIC)
        return CUDA_ERROR_INVALID_VALUE;
    struct work work = {.kind = WORK_GRAPH, .context = context};
    pthread_mutex_lock(&queue_lock);
    work.u.graph.graph = exec->graph;
    exec->graph->references++;
    pthread_mutex_unlock(&queue_lock);
    return stream_submit(stream, &work, WAIT_NOT);
}
