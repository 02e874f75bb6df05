/* Gates: where CUDA calls wait while the process has no VRAM. See gate.c. */
#ifndef KYBERNATE_GATE_H
#define KYBERNATE_GATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base.h"

enum kyb_gate {
    KYB_GATE_LAUNCH = 1,
    KYB_GATE_MEMORY = 2,
    KYB_GATE_ASK = 4, /* questions about addresses: closed only while extents are unmapped */
};

struct kyb_thread {
    _Atomic unsigned inside; /* enum kyb_gate the thread has passed, 0 outside the driver */
    unsigned depth;          /* wrappers nested on this thread; more than 0 passes every gate */
    bool listed;
    struct kyb_thread *next, *previous;
};

extern _Thread_local struct kyb_thread kyb_self __attribute__((tls_model("initial-exec")));
extern _Atomic unsigned kyb_gates_closed;

void kyb_gate_enter_slowly(struct kyb_thread *thread, unsigned gate);

static inline void kyb_enter(unsigned gate)
{
    struct kyb_thread *thread = &kyb_self;
    if (KYB_UNLIKELY(thread->depth++ != 0)) return;
    atomic_store_explicit(&thread->inside, gate, memory_order_relaxed);
    /* Only the compiler needs stopping here: whoever closes a gate runs membarrier(), which orders this store
     * before the load on every running thread. */
    atomic_signal_fence(memory_order_seq_cst);
    if (KYB_UNLIKELY(!thread->listed || (atomic_load_explicit(&kyb_gates_closed, memory_order_relaxed) & gate)))
        kyb_gate_enter_slowly(thread, gate);
}

static inline void kyb_leave(void)
{
    struct kyb_thread *thread = &kyb_self;
    if (KYB_LIKELY(--thread->depth == 0)) atomic_store_explicit(&thread->inside, 0, memory_order_release);
}

bool kyb_gate_start(void); /* false: this kernel has no private membarrier */
void kyb_gate_close(unsigned gates);
bool kyb_gate_drained(unsigned gates, int64_t deadline_ns); /* false: still a thread inside at the deadline */
void kyb_gate_step(int64_t deadline_ns); /* launch gate closed: let one launch pass, should one come in time */
void kyb_gate_open(void);
void kyb_gate_exempt(void); /* this thread passes all gates from now on */
void kyb_gate_after_fork(void);

#endif
