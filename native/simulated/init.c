/* cuInit, versions, error texts, and what happens at fork. */
#include "simulated.h"

#include <sys/mman.h>
#include <unistd.h>

pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;

static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic bool ready;
static bool forked; /* this is the child of a process that had initialised: CUDA is gone for good */

/* So that programs can tell, and a number to compare. */
EXPORT extern const int kybernate_simulated_version;
const int kybernate_simulated_version = 1;

bool driver_ready(void) { return ready; }

static void before_fork(void)
{
    pthread_mutex_lock(&init_lock);
    pthread_mutex_lock(&memory_lock);
    pthread_mutex_lock(&queue_lock);
}

static void after_fork_parent(void)
{
    pthread_mutex_unlock(&queue_lock);
    pthread_mutex_unlock(&memory_lock);
    pthread_mutex_unlock(&init_lock);
}

/* The child keeps no hold on the parent's memory: mappings are not inherited, descriptors are closed here. */
static void after_fork_child(void)
{
    for (struct physical *p = physical_list; p; p = p->next)
        if (p->fd >= 0)
            close(p->fd);
    for (int i = 0; i < gpu_count; i++)
        if (gpus[i].arena >= 0)
            close(gpus[i].arena);
    physical_list = NULL;
    gpu_count = 0;
    forked = true;
    ready = false;
    target_after_fork();
    gate_after_fork();
    pthread_mutex_unlock(&queue_lock);
    pthread_mutex_unlock(&memory_lock);
    pthread_mutex_unlock(&init_lock);
}

API(cuInit, unsigned flags)
{
    ENTER_ALWAYS();
    CUresult result = CUDA_SUCCESS;

    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&init_lock);
    if (forked) {
        result = CUDA_ERROR_NOT_INITIALIZED;
    } else if (!ready) {
        result = gpus_open();
        if (!result)
            result = target_start();
        if (!result) {
            pthread_atfork(before_fork, after_fork_parent, after_fork_child);
            ready = true;
        }
    }
    pthread_mutex_unlock(&init_lock);
    return result;
}

API(cuDriverGetVersion, int *version)
{
    if (!version)
        return CUDA_ERROR_INVALID_VALUE;
    *version = DRIVER_VERSION;
    return CUDA_SUCCESS;
}

static const struct {
    CUresult value;
    const char *name, *text;
} errors[] = {
#define X(name, value, text) {name, #name, text},
    SIM_ERRORS(X)
#undef X
};

API(cuGetErrorName, CUresult error, const char **out)
{
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].value == error) {
            *out = errors[i].name;
            return CUDA_SUCCESS;
        }
    *out = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}

API(cuGetErrorString, CUresult error, const char **out)
{
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].value == error) {
            *out = errors[i].text;
            return CUDA_SUCCESS;
        }
    *out = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}

/* Private tables of NVIDIA's own libraries: there are none. */
API(cuGetExportTable, const void **table, const CUuuid *id)
{
    (void)id;
    if (!table)
        return CUDA_ERROR_INVALID_VALUE;
    *table = NULL;
    return CUDA_ERROR_NOT_FOUND;
}

API(cuProfilerStart, void)
{
    ENTER();
    return CUDA_SUCCESS;
}

API(cuProfilerStop, void)
{
    ENTER();
    return CUDA_SUCCESS;
}
