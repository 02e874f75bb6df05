/* The gates: where CUDA calls wait while the process has no VRAM.
 *
 * A call costs two plain stores and a load. The price is paid by whoever closes: membarrier() makes every running
 * thread of the process pass a full barrier, after which a thread has either shown itself inside or will see the gate
 * closed. Three gates, closed one after the other. Launches first, then what else touches memory, since kernels of a
 * communication library may wait for copies that another thread of the process has yet to issue. Questions about
 * addresses last, when nothing is waited for any more: who asks may hold a lock that GPU work needs to come to its
 * end.
 */
#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "gate.h"
#include "process.h"

_Thread_local struct kyb_thread kyb_self __attribute__((tls_model("initial-exec")));
_Atomic unsigned kyb_gates_closed;
static _Atomic unsigned steps; /* launches that may pass a closed gate: 0 or 1 */

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct kyb_thread *threads;
static pthread_key_t leaver;
static pthread_once_t leaver_once = PTHREAD_ONCE_INIT;
static bool have_leaver; /* without it an ended thread would stay in the list, as a pointer to nothing */

static void unlist(void *argument)
{
    struct kyb_thread *thread = argument;
    pthread_mutex_lock(&list_lock);
    if (thread->next) thread->next->previous = thread->previous;
    if (thread->previous)
        thread->previous->next = thread->next;
    else
        threads = thread->next;
    thread->listed = false;
    pthread_mutex_unlock(&list_lock);
}

static void make_leaver(void)
{
    have_leaver = pthread_key_create(&leaver, unlist) == 0;
}

static void list(struct kyb_thread *thread)
{
    pthread_once(&leaver_once, make_leaver);
    if (!have_leaver) return; /* kyb_gate_start said so: no gate is ever closed in this process */
    pthread_mutex_lock(&list_lock);
    thread->previous = NULL;
    thread->next = threads;
    if (threads) threads->previous = thread;
    threads = thread;
    thread->listed = true;
    pthread_mutex_unlock(&list_lock);
    pthread_setspecific(leaver, thread);
}

static bool take_step(void)
{
    unsigned one = 1;
    return atomic_compare_exchange_strong(&steps, &one, 0);
}

static void futex_wait(_Atomic unsigned *word, unsigned value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

void kyb_gate_enter_slowly(struct kyb_thread *thread, unsigned gate)
{
    int saved = errno;
    if (!thread->listed) list(thread);
    for (;;) {
        atomic_store_explicit(&thread->inside, gate, memory_order_seq_cst);
        unsigned closed = atomic_load_explicit(&kyb_gates_closed, memory_order_seq_cst);
        if (!(closed & gate)) break;
        if (gate == KYB_GATE_LAUNCH && take_step()) break;
        atomic_store_explicit(&thread->inside, 0, memory_order_release);
        futex_wait(&kyb_gates_closed, closed);
    }
    errno = saved;
}

bool kyb_gate_start(void)
{
    pthread_once(&leaver_once, make_leaver);
    return have_leaver && syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
}

void kyb_gate_close(unsigned gates)
{
    atomic_fetch_or(&kyb_gates_closed, gates);
    syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
}

static bool somebody_inside(unsigned gates)
{
    bool found = false;
    pthread_mutex_lock(&list_lock);
    for (struct kyb_thread *thread = threads; thread && !found; thread = thread->next)
        found = (atomic_load_explicit(&thread->inside, memory_order_acquire) & gates) != 0;
    pthread_mutex_unlock(&list_lock);
    return found;
}

bool kyb_gate_drained(unsigned gates, int64_t deadline_ns)
{
    long pause = 5000;
    while (somebody_inside(gates)) {
        if (kyb_now_ns() >= deadline_ns) return false;
        nanosleep(&(struct timespec){.tv_nsec = pause}, NULL);
        if (pause < 500000) pause *= 2;
    }
    return true;
}

static void wake(void)
{
    syscall(SYS_futex, &kyb_gates_closed, FUTEX_WAKE_PRIVATE, 0x7fffffff, NULL, NULL, 0);
}

void kyb_gate_step(int64_t deadline_ns)
{
    long pause = 5000;
    atomic_store(&steps, 1);
    while (atomic_load(&steps)) {
        wake(); /* each time: one that was about to wait when the step came does not see it by itself */
        if (kyb_now_ns() >= deadline_ns) break;
        nanosleep(&(struct timespec){.tv_nsec = pause}, NULL);
        if (pause < 500000) pause *= 2;
    }
    atomic_store(&steps, 0);
}

void kyb_gate_open(void)
{
    atomic_store(&kyb_gates_closed, 0);
    wake();
}

void kyb_gate_exempt(void)
{
    kyb_self.depth = 1U << 30;
}

/* In a forked child only the forking thread goes on, and nobody closes gates on it. */
void kyb_gate_after_fork(void)
{
    pthread_mutex_init(&list_lock, NULL);
    threads = NULL;
    atomic_store(&kyb_gates_closed, 0);
    atomic_store(&steps, 0);
    if (kyb_self.listed) {
        kyb_self.next = kyb_self.previous = NULL;
        threads = &kyb_self;
    }
}
