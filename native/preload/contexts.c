/* Which contexts the process has, which of its streams are being captured, which GPUs see each other's memory. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "contexts.h"
#include "driver.h"
#include "free_cache.h"
#include "gate.h"
#include "memory.h"
#include "process.h"
#include "wrappers.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct kyb_contexts created;
static void *primary[KYB_DEVICES_MAX];
static void **captured;
static size_t captured_count, captured_capacity;
static _Atomic unsigned captures;         /* how many are open, for readers without the lock */
static uint64_t readers[KYB_DEVICES_MAX]; /* by owner: bit of each device that may reach its memory */

bool kyb_gpu_of_device(int device, uint8_t gpu[16])
{
    static uint8_t known[KYB_DEVICES_MAX][16];
    static _Atomic bool is_known[KYB_DEVICES_MAX];
    if (device < 0 || device >= KYB_DEVICES_MAX) return false;
    if (!atomic_load(&is_known[device])) {
        uint8_t fresh[16];
        if (kyb_driver.cuDeviceGetUuid(fresh, device) != CUDA_SUCCESS) return false;
        pthread_mutex_lock(&lock);
        memcpy(known[device], fresh, 16);
        pthread_mutex_unlock(&lock);
        atomic_store(&is_known[device], true);
    }
    memcpy(gpu, known[device], 16);
    return true;
}

/* ---- contexts ---- */

static void add(void *context)
{
    pthread_mutex_lock(&lock);
    if (created.count < sizeof created.list / sizeof *created.list) created.list[created.count++] = context;
    pthread_mutex_unlock(&lock);
}

static void drop(void *context)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < created.count; i++)
        if (created.list[i] == context) {
            created.list[i] = created.list[--created.count];
            break;
        }
    pthread_mutex_unlock(&lock);
}

bool kyb_whole_context(const void *context)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < created.count && !found; i++) found = created.list[i] == context;
    for (int device = 0; device < KYB_DEVICES_MAX && !found; device++) found = primary[device] == context;
    pthread_mutex_unlock(&lock);
    return found;
}

void kyb_contexts(struct kyb_contexts *contexts)
{
    pthread_mutex_lock(&lock);
    *contexts = created;
    for (int device = 0; device < KYB_DEVICES_MAX; device++) {
        unsigned flags;
        int active = 0;
        if (!primary[device] || kyb_driver.cuDevicePrimaryCtxGetState(device, &flags, &active) != CUDA_SUCCESS ||
            !active)
            continue;
        if (contexts->count < sizeof contexts->list / sizeof *contexts->list)
            contexts->list[contexts->count++] = primary[device];
    }
    pthread_mutex_unlock(&lock);
}

#define CREATE(name, types, parameters, arguments)                     \
    int name parameters                                                \
    {                                                                  \
        kyb_enter(KYB_GATE_MEMORY);                                    \
        int result = KYB_DRIVER(name, types, arguments);               \
        if (result == CUDA_SUCCESS && context) add(*(void **)context); \
        kyb_leave();                                                   \
        return result;                                                 \
    }

CREATE(cuCtxCreate, (void *, unsigned int, int), (void *context, unsigned int flags, int device),
       (context, flags, device))
CREATE(cuCtxCreate_v2, (void *, unsigned int, int), (void *context, unsigned int flags, int device),
       (context, flags, device))
CREATE(cuCtxCreate_v3, (void *, void *, int, unsigned int, int),
       (void *context, void *affinity, int count, unsigned int flags, int device),
       (context, affinity, count, flags, device))
CREATE(cuCtxCreate_v4, (void *, void *, unsigned int, int),
       (void *context, void *parameters, unsigned int flags, int device), (context, parameters, flags, device))

#define DESTROY(name)                                       \
    int name(void *context)                                 \
    {                                                       \
        kyb_enter(KYB_GATE_MEMORY);                         \
        int result = KYB_DRIVER(name, (void *), (context)); \
        if (result == CUDA_SUCCESS) {                       \
            drop(context);                                  \
            kyb_free_context(context);                      \
        }                                                   \
        kyb_leave();                                        \
        return result;                                      \
    }

DESTROY(cuCtxDestroy)
DESTROY(cuCtxDestroy_v2)

int cuDevicePrimaryCtxRetain(void *context, int device)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuDevicePrimaryCtxRetain, (void *, int), (context, device));
    if (result == CUDA_SUCCESS && context && device >= 0 && device < KYB_DEVICES_MAX) {
        pthread_mutex_lock(&lock);
        primary[device] = *(void **)context;
        pthread_mutex_unlock(&lock);
    }
    kyb_leave();
    return result;
}

static void *primary_gone(int device)
{
    unsigned flags;
    int active = 1;
    void *context = NULL;
    if (device < 0 || device >= KYB_DEVICES_MAX) return NULL;
    pthread_mutex_lock(&lock);
    if (primary[device] && kyb_driver.cuDevicePrimaryCtxGetState(device, &flags, &active) == CUDA_SUCCESS && !active) {
        context = primary[device];
        primary[device] = NULL;
    }
    pthread_mutex_unlock(&lock);
    return context;
}

/* A reset leaves the primary context inactive, a release does so when it was the last. */
#define PRIMARY_END(name)                                                  \
    int name(int device)                                                   \
    {                                                                      \
        kyb_enter(KYB_GATE_MEMORY);                                        \
        int result = KYB_DRIVER(name, (int), (device));                    \
        void *gone = result == CUDA_SUCCESS ? primary_gone(device) : NULL; \
        if (gone) kyb_free_context(gone);                                  \
        kyb_leave();                                                       \
        return result;                                                     \
    }

PRIMARY_END(cuDevicePrimaryCtxRelease)
PRIMARY_END(cuDevicePrimaryCtxRelease_v2)
PRIMARY_END(cuDevicePrimaryCtxReset)
PRIMARY_END(cuDevicePrimaryCtxReset_v2)

/* ---- stream captures: synchronising a context breaks one, so a pause waits until none is open ---- */

unsigned kyb_open_captures(void)
{
    return atomic_load(&captures);
}

static void capture_begins(void *stream)
{
    pthread_mutex_lock(&lock);
    if (captured_count == captured_capacity) {
        size_t capacity = captured_capacity ? 2 * captured_capacity : 64;
        void **larger = realloc(captured, capacity * sizeof *larger);
        if (larger) {
            captured = larger;
            captured_capacity = capacity;
        }
    }
    if (captured_count < captured_capacity) captured[captured_count++] = stream;
    atomic_fetch_add(&captures, 1); /* one that is not in the list forbids pauses for good: better than to break it */
    pthread_mutex_unlock(&lock);
}

static void capture_ends(void *stream)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < captured_count; i++)
        if (captured[i] == stream) {
            captured[i] = captured[--captured_count];
            atomic_fetch_sub(&captures, 1);
            break;
        }
    pthread_mutex_unlock(&lock);
}

/* Beginning a capture is work for the GPU to be: it waits at the launch gate. */
#define BEGIN(name, types, parameters, arguments)           \
    int name parameters                                     \
    {                                                       \
        kyb_enter(KYB_GATE_LAUNCH);                         \
        int result = KYB_DRIVER(name, types, arguments);    \
        if (result == CUDA_SUCCESS) capture_begins(stream); \
        kyb_leave();                                        \
        return result;                                      \
    }

BEGIN(cuStreamBeginCapture, (void *), (void *stream), (stream))
BEGIN(cuStreamBeginCapture_ptsz, (void *), (void *stream), (stream))
BEGIN(cuStreamBeginCapture_v2, (void *, int), (void *stream, int mode), (stream, mode))
BEGIN(cuStreamBeginCapture_v2_ptsz, (void *, int), (void *stream, int mode), (stream, mode))
BEGIN(cuStreamBeginCaptureToGraph, (void *, void *, void *, void *, size_t, int),
      (void *stream, void *graph, void *dependencies, void *data, size_t count, int mode),
      (stream, graph, dependencies, data, count, mode))
BEGIN(cuStreamBeginCaptureToGraph_ptsz, (void *, void *, void *, void *, size_t, int),
      (void *stream, void *graph, void *dependencies, void *data, size_t count, int mode),
      (stream, graph, dependencies, data, count, mode))
BEGIN(cuStreamBeginRecaptureToGraph, (void *, int, void *, void *, void *),
      (void *stream, int mode, void *graph, void *callback, void *data), (stream, mode, graph, callback, data))
BEGIN(cuStreamBeginRecaptureToGraph_ptsz, (void *, int, void *, void *, void *),
      (void *stream, int mode, void *graph, void *callback, void *data), (stream, mode, graph, callback, data))
BEGIN(cuStreamBeginCaptureToCig, (void *, void *), (void *stream, void *parameters), (stream, parameters))
BEGIN(cuStreamBeginCaptureToCig_ptsz, (void *, void *), (void *stream, void *parameters), (stream, parameters))

#define END(name, types, parameters, arguments)                                                     \
    int name parameters                                                                             \
    {                                                                                               \
        kyb_enter(KYB_GATE_MEMORY);                                                                 \
        int result = KYB_DRIVER(name, types, arguments);                                            \
        if (result != CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD && result != CUDA_ERROR_INVALID_VALUE) \
            capture_ends(stream);                                                                   \
        kyb_leave();                                                                                \
        return result;                                                                              \
    }

END(cuStreamEndCapture, (void *, void *), (void *stream, void *graph), (stream, graph))
END(cuStreamEndCapture_ptsz, (void *, void *), (void *stream, void *graph), (stream, graph))
END(cuStreamEndCaptureToCig, (void *), (void *stream), (stream))
END(cuStreamEndCaptureToCig_ptsz, (void *), (void *stream), (stream))

#define STREAM_END(name)                                                         \
    int name(void *stream)                                                       \
    {                                                                            \
        kyb_enter(KYB_GATE_MEMORY);                                              \
        int result = KYB_DRIVER(name, (void *), (stream));                       \
        if (result == CUDA_SUCCESS && kyb_open_captures()) capture_ends(stream); \
        kyb_leave();                                                             \
        return result;                                                           \
    }

STREAM_END(cuStreamDestroy)
STREAM_END(cuStreamDestroy_v2)

/* ---- peers: memory of cuMemAlloc is reachable from every enabled peer, extents only where access was set ---- */

static int device_of(void *context)
{
    int device = -1;
    void *popped;
    if (kyb_driver.cuCtxPushCurrent_v2(context) != CUDA_SUCCESS) return -1;
    if (kyb_driver.cuCtxGetDevice(&device) != CUDA_SUCCESS) device = -1;
    kyb_driver.cuCtxPopCurrent_v2(&popped);
    return device;
}

void kyb_add_peer_access(struct kyb_mapping *mapping)
{
    int owner = mapping->block->device;
    if (owner < 0 || owner >= KYB_DEVICES_MAX) return;
    pthread_mutex_lock(&lock);
    uint64_t bits = readers[owner];
    pthread_mutex_unlock(&lock);
    for (int reader = 0; reader < KYB_DEVICES_MAX; reader++)
        if (bits >> reader & 1)
            kyb_record_access(
                mapping, &(struct kyb_mem_access){{CU_MEM_LOCATION_TYPE_DEVICE, reader}, CU_MEM_ACCESS_READ_WRITE}, 1);
}

int cuCtxEnablePeerAccess(void *peer, unsigned int flags)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuCtxEnablePeerAccess, (void *, unsigned int), (peer, flags));
    int reader = -1, owner;
    if (kyb_enabled && result == CUDA_SUCCESS && kyb_driver.cuCtxGetDevice(&reader) == CUDA_SUCCESS &&
        (owner = device_of(peer)) >= 0 && owner < KYB_DEVICES_MAX && reader >= 0 && reader < KYB_DEVICES_MAX) {
        pthread_mutex_lock(&lock);
        readers[owner] |= 1ULL << reader;
        pthread_mutex_unlock(&lock);
        kyb_grant_peer(owner, reader);
    }
    kyb_leave();
    return result;
}

/* Access already given to extents stays: a wider right than asked for, never a narrower one. */
int cuCtxDisablePeerAccess(void *peer)
{
    kyb_enter(KYB_GATE_MEMORY);
    int result = KYB_DRIVER(cuCtxDisablePeerAccess, (void *), (peer));
    kyb_leave();
    return result;
}
