/* The gate of every API call: open while the process runs, shut while it is locked for a checkpoint.
 *
 * A thread that arrives while the gate is shut waits, and counts as inside from the moment the gate opens,
 * not from the moment it wakes. So a thread that is stopped (by ptrace, by the freezer) while it waits
 * makes the next lock time out, as it does with the real driver.
 */
#include "simulated.h"

#include <errno.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool closed;
static unsigned inside, waiting;
static uint64_t generation;

static _Thread_local unsigned depth; /* callbacks may call in again */

int gate_enter(void)
{
    if (depth++)
        return 0;
    pthread_mutex_lock(&lock);
    if (!closed) {
        inside++;
    } else {
        uint64_t mine = generation;
        waiting++;
        while (generation == mine)
            pthread_cond_wait(&changed, &lock); /* who opens counts us as inside */
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

void gate_leave(int *token)
{
    (void)token;
    if (--depth)
        return;
    pthread_mutex_lock(&lock);
    inside--;
    if (closed && !inside)
        pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void open_locked(void)
{
    closed = false;
    inside += waiting;
    waiting = 0;
    generation++;
    pthread_cond_broadcast(&changed);
}

void gate_open(void)
{
    pthread_mutex_lock(&lock);
    open_locked();
    pthread_mutex_unlock(&lock);
}

/* Shut the gate and wait until nobody is inside and no work is queued. timeout_ms 0: for ever, but for
 * still_wanted, which is asked every few milliseconds. False: given up, and the gate is open again. */
bool gate_close(int timeout_ms, bool (*still_wanted)(void *), void *argument)
{
    uint64_t deadline = clock_ns() + (uint64_t)timeout_ms * 1000000U;

    pthread_mutex_lock(&lock);
    closed = true;
    for (;;) {
        if (!inside) {
            pthread_mutex_unlock(&lock);
            bool idle = queue_wait_idle(5);
            pthread_mutex_lock(&lock);
            if (idle && !inside)
                break;
        } else {
            struct timespec slice;
            clock_gettime(CLOCK_REALTIME, &slice);
            slice.tv_nsec += 5000000;
            if (slice.tv_nsec >= 1000000000) {
                slice.tv_nsec -= 1000000000;
                slice.tv_sec++;
            }
            pthread_cond_timedwait(&changed, &lock, &slice);
            if (!inside)
                continue;
        }
        pthread_mutex_unlock(&lock);
        bool wanted = still_wanted(argument) && (timeout_ms == 0 || clock_ns() < deadline);
        pthread_mutex_lock(&lock);
        if (!wanted) {
            open_locked();
            pthread_mutex_unlock(&lock);
            return false;
        }
    }
    pthread_mutex_unlock(&lock);
    return true;
}

/* In the child of a fork only the calling thread is left. */
void gate_after_fork(void)
{
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&changed, NULL);
    closed = false;
    inside = depth ? 1 : 0;
    waiting = 0;
}
