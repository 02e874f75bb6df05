/* Contexts: primary and made, and the stack of current ones that each thread has.
 *
 * A context owns no memory of its own here, so a process that allocated nothing shows no VRAM in use.
 */
#include "simulated.h"

#include <stdlib.h>

#define MAGIC 0x7478746e6f63ULL
#define STACK_MAX 64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct context *list;
static struct context *primary[GPUS_MAX];
static unsigned primary_flags[GPUS_MAX];
static uint64_t last_id;

static _Thread_local struct context *stack[STACK_MAX];
static _Thread_local unsigned height;

/* Contexts are never freed, only emptied: a thread may still have a destroyed one current. */
static struct context *make(CUdevice device, unsigned flags, bool is_primary)
{
    struct context *context = calloc(1, sizeof *context);
    if (!context)
        return NULL;
    *context = (struct context){.next = list,
                                .magic = MAGIC,
                                .device = device,
                                .primary = is_primary,
                                .retained = 1,
                                .flags = flags,
                                .id = ++last_id};
    list = context;
    return context;
}

static bool known(const struct context *context)
{
    for (const struct context *c = list; c; c = c->next)
        if (c == context)
            return true;
    return false;
}

bool context_valid(const struct context *context)
{
    pthread_mutex_lock(&lock);
    bool valid = known(context) && context->retained;
    pthread_mutex_unlock(&lock);
    return valid;
}

CUresult context_current(struct context **out)
{
    struct context *context = height ? stack[height - 1] : NULL;
    if (!context)
        return CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_lock(&lock);
    bool alive = context->retained > 0;
    pthread_mutex_unlock(&lock);
    if (!alive)
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    *out = context;
    return (CUresult)context->sticky;
}

void context_poison(struct context *context, CUresult error) { context->sticky = error; }

/* Everything the context owned goes with it. */
static void empty(struct context *context)
{
    context_wait_idle(context);
    pthread_mutex_lock(&memory_lock);
    for (size_t i = space_count; i-- > 0;) {
        struct range *range = space_ranges[i];
        if (range->context == context && range->kind == KIND_ALLOCATION)
            memory_free(range->base); /* takes out entry i alone */
    }
    pthread_mutex_unlock(&memory_lock);
    streams_of_context_drop(context);
    pthread_mutex_lock(&lock);
    context->sticky = 0;
    pthread_mutex_unlock(&lock);
}

API(cuDevicePrimaryCtxRetain, struct context **out, CUdevice device)
{
    ENTER();
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    if (!primary[device])
        primary[device] = make(device, primary_flags[device], true);
    else
        primary[device]->retained++;
    *out = primary[device];
    pthread_mutex_unlock(&lock);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API(cuDevicePrimaryCtxRelease_v2, CUdevice device)
{
    ENTER();
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    struct context *context = primary[device];
    bool last = context && context->retained == 1;
    pthread_mutex_unlock(&lock);
    if (!context || !context->retained)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (last)
        empty(context);
    pthread_mutex_lock(&lock);
    context->retained--;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
ALIAS(cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRelease, CUdevice device);

API(cuDevicePrimaryCtxReset_v2, CUdevice device)
{
    ENTER();
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    struct context *context = primary[device];
    pthread_mutex_unlock(&lock);
    if (context)
        empty(context);
    return CUDA_SUCCESS;
}
ALIAS(cuDevicePrimaryCtxReset_v2, cuDevicePrimaryCtxReset, CUdevice device);

API(cuDevicePrimaryCtxSetFlags_v2, CUdevice device, unsigned flags)
{
    ENTER();
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    primary_flags[device] = flags;
    if (primary[device])
        primary[device]->flags = flags;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
ALIAS(cuDevicePrimaryCtxSetFlags_v2, cuDevicePrimaryCtxSetFlags, CUdevice device, unsigned flags);

API(cuDevicePrimaryCtxGetState, CUdevice device, unsigned *flags, int *active)
{
    ENTER();
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (!flags || !active)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    *flags = primary_flags[device];
    *active = primary[device] && primary[device]->retained;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

API(cuCtxCreate_v2, struct context **out, unsigned flags, CUdevice device)
{
    ENTER();
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    if (!gpu_valid(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (height == STACK_MAX)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    struct context *context = make(device, flags, false);
    pthread_mutex_unlock(&lock);
    if (!context)
        return CUDA_ERROR_OUT_OF_MEMORY;
    stack[height++] = *out = context;
    return CUDA_SUCCESS;
}

API(cuCtxCreate_v3, struct context **out, void *affinity, int count, unsigned flags, CUdevice device)
{
    (void)affinity;
    return count ? CUDA_ERROR_NOT_SUPPORTED : cuCtxCreate_v2(out, flags, device);
}

API(cuCtxCreate_v4, struct context **out, void *parameters, unsigned flags, CUdevice device)
{
    return parameters ? CUDA_ERROR_NOT_SUPPORTED : cuCtxCreate_v2(out, flags, device);
}

API(cuCtxDestroy_v2, struct context *context)
{
    ENTER();
    pthread_mutex_lock(&lock);
    bool good = known(context) && context->retained;
    bool is_primary = good && context->primary;
    pthread_mutex_unlock(&lock);
    if (!good || is_primary)
        return CUDA_ERROR_INVALID_CONTEXT;
    empty(context);
    pthread_mutex_lock(&lock);
    context->retained = 0;
    pthread_mutex_unlock(&lock);
    if (height && stack[height - 1] == context)
        height--;
    return CUDA_SUCCESS;
}

API(cuCtxPushCurrent_v2, struct context *context)
{
    ENTER();
    if (!context_valid(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (height == STACK_MAX)
        return CUDA_ERROR_OUT_OF_MEMORY;
    stack[height++] = context;
    return CUDA_SUCCESS;
}

API(cuCtxPopCurrent_v2, struct context **out)
{
    ENTER();
    if (!height)
        return CUDA_ERROR_INVALID_CONTEXT;
    height--;
    if (out)
        *out = stack[height];
    return CUDA_SUCCESS;
}

API(cuCtxSetCurrent, struct context *context)
{
    ENTER();
    if (context && !context_valid(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!context) {
        if (height)
            height--;
        return CUDA_SUCCESS;
    }
    if (!height)
        height = 1;
    stack[height - 1] = context;
    return CUDA_SUCCESS;
}

API(cuCtxGetCurrent, struct context **out)
{
    ENTER();
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    *out = height ? stack[height - 1] : NULL;
    return CUDA_SUCCESS;
}

API(cuCtxGetDevice, CUdevice *device)
{
    ENTER_CONTEXT(context);
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    *device = context->device;
    return CUDA_SUCCESS;
}

API(cuCtxGetDevice_v2, CUdevice *device, struct context *context)
{
    ENTER();
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    if (!context)
        return cuCtxGetDevice(device);
    if (!context_valid(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    *device = context->device;
    return CUDA_SUCCESS;
}

API(cuCtxSynchronize, void)
{
    ENTER_CONTEXT(context);
    return context_wait_idle(context);
}

API(cuCtxSynchronize_v2, struct context *context)
{
    ENTER();
    if (!context)
        return cuCtxSynchronize();
    if (!context_valid(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    return context_wait_idle(context);
}

API(cuCtxGetFlags, unsigned *flags)
{
    ENTER_CONTEXT(context);
    if (!flags)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = context->flags;
    return CUDA_SUCCESS;
}

API(cuCtxSetFlags, unsigned flags)
{
    ENTER_CONTEXT(context);
    context->flags = flags;
    return CUDA_SUCCESS;
}

API(cuCtxGetId, struct context *context, unsigned long long *id)
{
    ENTER();
    if (!id)
        return CUDA_ERROR_INVALID_VALUE;
    if (!context) {
        CUresult result = context_current(&context);
        if (result)
            return result;
    }
    if (!context_valid(context))
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    *id = context->id;
    return CUDA_SUCCESS;
}

API(cuCtxGetApiVersion, struct context *context, unsigned *version)
{
    ENTER();
    (void)context;
    if (!version)
        return CUDA_ERROR_INVALID_VALUE;
    *version = 3020;
    return CUDA_SUCCESS;
}

API(cuCtxGetLimit, size_t *value, int limit)
{
    ENTER_CONTEXT(context);
    if (!value || limit < 0)
        return CUDA_ERROR_INVALID_VALUE;
    *value = limit == 0 ? 1024 : limit == 2 ? 8U << 20 : 0;
    return CUDA_SUCCESS;
}

API(cuCtxSetLimit, int limit, size_t value)
{
    ENTER_CONTEXT(context);
    (void)value;
    return limit < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

API(cuCtxGetCacheConfig, int *config)
{
    ENTER_CONTEXT(context);
    if (!config)
        return CUDA_ERROR_INVALID_VALUE;
    *config = 0;
    return CUDA_SUCCESS;
}

API(cuCtxSetCacheConfig, int config)
{
    ENTER_CONTEXT(context);
    (void)config;
    return CUDA_SUCCESS;
}

API(cuCtxGetStreamPriorityRange, int *least, int *greatest)
{
    ENTER_CONTEXT(context);
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return CUDA_SUCCESS;
}

API(cuCtxEnablePeerAccess, struct context *peer, unsigned flags)
{
    ENTER_CONTEXT(context);
    (void)peer;
    (void)flags;
    return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
}
