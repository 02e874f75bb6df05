/* Start, cuInit and fork. A process that was not started by the agent, or never uses CUDA, notices nothing of us. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "control.h"
#include "driver.h"
#include "free_cache.h"
#include "gate.h"
#include "memory.h"
#include "process.h"
#include "wrappers.h"

static bool able; /* run directory known, gates work */
static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER;
static bool started;

static void before_fork(void)
{
    pthread_mutex_lock(&start_lock);
}

static void in_parent(void)
{
    pthread_mutex_unlock(&start_lock);
}

static void in_child(void)
{
    pthread_mutex_init(&start_lock, NULL);
    kyb_gate_after_fork();
    if (!started) return; /* the child may yet start CUDA itself */
    kyb_enabled = false;
    kyb_memory_after_fork();
    kyb_free_cache_after_fork();
    kyb_control_after_fork();
}

/* Handlers run before a fork in the reverse order of their registration. This one is registered after the driver's
 * cuInit has registered its own, and so takes its lock before the driver's locks, as every thread does that calls the
 * driver with it held. */
static void before_fork_lists(void)
{
    pthread_mutex_lock(&kyb_memory_lock);
}

static void in_parent_lists(void)
{
    pthread_mutex_unlock(&kyb_memory_lock);
}

static void in_child_lists(void)
{
    pthread_mutex_init(&kyb_memory_lock, NULL);
}

__attribute__((constructor)) static void start(void)
{
    const char *directory = getenv("KYBERNATE_RUN_DIRECTORY");
    if (!directory || !*directory) return;
    kyb_run_directory = strdup(directory);
    able = kyb_run_directory && kyb_gate_start();
    pthread_atfork(before_fork, in_parent, in_child);
}

static void start_after_init(void)
{
    static _Atomic bool said;
    pthread_mutex_lock(&start_lock);
    bool first = !started;
    if (first) {
        started = true;
        pthread_atfork(before_fork_lists, in_parent_lists, in_child_lists);
        if (!kyb_driver_load())
            kyb_say_once(&said, "this CUDA driver lacks virtual memory management: GPU memory stays with the driver");
        else if (!kyb_control_start())
            kyb_say_once(&said, "can't listen in %s/control (%s): GPU memory stays with the driver", kyb_run_directory,
                         strerror(errno));
        else {
            /* Before the first allocation: to the agent a hello means a process that has no memory yet. */
            kyb_ask_hello();
            kyb_enabled = true;
        }
    }
    pthread_mutex_unlock(&start_lock);
}

int cuInit(unsigned int flags)
{
    int result = KYB_DRIVER(cuInit, (unsigned int), (flags));
    if (result == CUDA_SUCCESS && able) start_after_init();
    return result;
}
