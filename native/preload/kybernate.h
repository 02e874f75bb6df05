/* What the files of the preload library share. See ARCHITECTURE.md for how they fit.
 *
 *   resolve.c    finds the driver's functions and hands out wrappers in their place
 *   calls.c      one wrapper for each entry point (generated list)
 *   gate.c       where calls wait while the process has no VRAM
 *   memory.c     the process's extents: which, where mapped, how to unmap and map them again
 *   allocate.c   cuMemAlloc and friends as extents
 *   kept.c       freed allocations that wait for the next one of their size
 *   questions.c  what memory says about itself: cuPointerGetAttribute and its kin
 *   handles.c    the process's own virtual memory management, through logical handles
 *   sharing.c    legacy IPC between processes of one workload; counters of what forbids a pause
 *   contexts.c   contexts, stream captures, peers
 *   drain.c      waits until the GPU is idle, with a timeout
 *   agent.c      asks the agent (connects, asks, hangs up)
 *   control.c    answers the agent (the control thread)
 *   lifecycle.c  start, cuInit, fork
 *
 * House rules inside a stranger's process: never exit, never print but once on stderr for a person, no signal
 * lands on our threads, errno is kept, errors go up as return values.
 */
#ifndef KYBERNATE_PRELOAD_H
#define KYBERNATE_PRELOAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda_abi.h"
#include "protocol.h"

#define KYB_EXPORT __attribute__((visibility("default")))
#define KYB_LIKELY(x) __builtin_expect(!!(x), 1)
#define KYB_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define KYB_CHUNK (2UL << 20) /* granularity of device memory; smaller allocations stay native */

/* ---- gate.c ---- */

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
int64_t kyb_now_ns(void);

/* ---- resolve.c ---- */

enum kyb_call {
#define KYB_GATED(gate, name, parameters, arguments) KYB_CALL_##name,
#define KYB_CUSTOM(name, parameters) KYB_CALL_##name,
#include "generated/calls.inc"
#undef KYB_GATED
#undef KYB_CUSTOM
    KYB_CALLS
};

extern _Atomic(void *) kyb_real[KYB_CALLS];
void *kyb_resolve(enum kyb_call call); /* never NULL: a stub that answers NOT_FOUND where the driver has none */
void *kyb_wrapper_of(void *real);      /* the wrapper for a function of the driver, or the function itself */
void *kyb_driver_symbol(const char *name);

static inline void *kyb_real_of(enum kyb_call call)
{
    void *real = atomic_load_explicit(&kyb_real[call], memory_order_relaxed);
    return KYB_LIKELY(real != NULL) ? real : kyb_resolve(call);
}

/* KYB_DRIVER(cuMemFree_v2, (uint64_t), (address)) calls the driver itself, past the gates. */
#define KYB_DRIVER(name, types, arguments) (((int(*) types)kyb_real_of(KYB_CALL_##name))arguments)

/* Calls of the driver that need no wrapper but that we make ourselves. */
struct kyb_driver {
    int (*cuCtxGetCurrent)(void **);
    int (*cuCtxGetDevice)(int *);
    int (*cuCtxPushCurrent_v2)(void *);
    int (*cuCtxPopCurrent_v2)(void **);
    int (*cuDeviceGetCount)(int *);
    int (*cuDeviceGet)(int *, int);
    int (*cuDeviceGetUuid)(uint8_t *, int);
    int (*cuDeviceTotalMem_v2)(size_t *, int); /* may be NULL: nothing is kept then */
    int (*cuDevicePrimaryCtxGetState)(int, unsigned *, int *);
};
extern struct kyb_driver kyb_driver;
bool kyb_driver_load(void);

/* The wrappers themselves, under the driver's names. */
#define KYB_GATED(gate, name, parameters, arguments) KYB_EXPORT int name parameters;
#define KYB_CUSTOM(name, parameters) KYB_EXPORT int name parameters;
#include "generated/calls.inc"
#undef KYB_GATED
#undef KYB_CUSTOM

/* ---- lifecycle.c ---- */

extern bool kyb_enabled; /* started by the agent, and everything needed is there */
extern const char *kyb_run_directory;
void kyb_say_once(_Atomic bool *said, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- memory.c ---- */

#define KYB_ACCESS_MAX 16

struct kyb_piece { /* one extent of ours */
    uint64_t id, size;
    int fd; /* the export descriptor: whoever holds it can import the memory; -1 once discarded */
};

enum kyb_block_kind {
    KYB_BLOCK_ALLOCATION, /* cuMemAlloc: one mapping, which owns its address range */
    KYB_BLOCK_HANDLE,     /* cuMemCreate by the application */
    KYB_BLOCK_FOREIGN,    /* imported by the application from somebody else */
    KYB_BLOCK_SHARED,     /* another process's allocation, opened by legacy IPC */
};

struct kyb_block { /* physical memory */
    enum kyb_block_kind kind;
    uint64_t size;      /* bytes, the sum of its pieces */
    uint64_t requested; /* bytes the application asked for */
    int device;
    uint8_t gpu[16];
    void *context;       /* ALLOCATION: freed with it */
    uint64_t logical;    /* HANDLE, FOREIGN: the value the application holds */
    uint64_t native;     /* FOREIGN: the driver's handle */
    uint64_t id;         /* what CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID says */
    unsigned references; /* handles the application holds */
    unsigned mappings;
    bool exported; /* by legacy IPC, or as a shareable handle */
    bool lent;     /* its address range was handed out for DMA */
    bool kept;     /* ALLOCATION: freed by the application, mapped still (kept.c) */
    struct kyb_mem_prop prop;
    struct kyb_piece *pieces;
    size_t piece_count;
    struct kyb_block *next, *previous;
};

struct kyb_mapping {
    uint64_t address, size;
    struct kyb_block *block;
    struct kyb_mem_access access[KYB_ACCESS_MAX];
    size_t access_count;
    uint64_t buffer_id; /* what CU_POINTER_ATTRIBUTE_BUFFER_ID says */
    int sync_memops;    /* as the application set it */
};

/* Guards everything below among application threads; with both gates shut the control thread is alone. */
extern pthread_mutex_t kyb_memory_lock;

struct kyb_block *kyb_block_new(enum kyb_block_kind kind, size_t pieces);
void kyb_block_list(struct kyb_block *block);
/* Puts it on the list `gone`, for kyb_forget. */
void kyb_block_unlist(struct kyb_block *block, struct kyb_block **gone);
/* Unlisted ones: closes descriptors, tells the agent, frees. Never with the lock held. */
void kyb_forget(struct kyb_block *gone);
struct kyb_block *kyb_block_of_handle(uint64_t logical);
struct kyb_mapping *kyb_mapping_at(uint64_t address); /* the one that contains address, or NULL; none that is kept */
struct kyb_mapping *kyb_mapping_even_kept(uint64_t address);
bool kyb_kept_within(uint64_t address, uint64_t size); /* kept memory touches this range */
bool kyb_mapping_add(uint64_t address, struct kyb_block *block);
uint64_t kyb_new_id(void); /* one that neither we nor the driver have given out */
int kyb_set_sync_memops(uint64_t address, const struct kyb_block *block, int value);
void kyb_mapping_remove(struct kyb_mapping *mapping);
size_t kyb_mapping_range(uint64_t address, uint64_t size, struct kyb_mapping **first);
int kyb_map_pieces(uint64_t address, const struct kyb_block *block); /* import and map each; undone on failure */
void kyb_record_access(struct kyb_mapping *mapping, const struct kyb_mem_access *access, size_t count);
const char *kyb_cuda_problem(int result, const char *call, char *buffer, size_t size);

/* For the control thread, gates shut. */
size_t kyb_extents(struct kyb_extent *records, int *fds, size_t max); /* returns how many there are */
size_t kyb_extent_count(void);
bool kyb_unmap_all(char *reason, size_t size);
bool kyb_map_all(char *reason, size_t size);
bool kyb_set_fd(uint64_t id, int fd); /* closes the old one; false: no such extent */
bool kyb_discard(uint64_t id);
void kyb_discard_all(void);
bool kyb_all_have_fds(void);
void kyb_memory_after_fork(void);
void kyb_free_context(void *context); /* what cuMemAlloc gave out under a context that is gone */
void kyb_grant_peer(int owner, int reader);

/* ---- contexts.c ---- */

#define KYB_DEVICES_MAX 64

struct kyb_contexts {
    void *list[64];
    size_t count;
};
void kyb_contexts(struct kyb_contexts *contexts);
/* Not a green one: synchronising that waits for a part of the device only. */
bool kyb_whole_context(const void *context);
unsigned kyb_open_captures(void);
void kyb_add_peer_access(struct kyb_mapping *mapping);
bool kyb_gpu_of_device(int device, uint8_t gpu[16]);

/* ---- drain.c ---- */

bool kyb_gpu_idle(int64_t deadline_ns, char *reason, size_t size); /* all contexts synchronised */

/* ---- sharing.c ---- */

const char *kyb_unsupported(void); /* why this process can't be paused now, or NULL */
extern _Atomic int kyb_managed, kyb_foreign, kyb_exports, kyb_external, kyb_multicast, kyb_ipc_opened, kyb_ipc_exported;
bool kyb_managed_freed(uint64_t address);
bool kyb_share(uint64_t address, struct kyb_extent *records, int *fds, size_t max, size_t *count, uint64_t *size);

/* ---- agent.c ---- */

enum kyb_answer { KYB_ANSWERED, KYB_AWAY };

struct kyb_grant {
    struct kyb_extent *records;
    int *fds;
    size_t count;
};

enum kyb_answer kyb_ask_hello(void);
enum kyb_answer kyb_ask_allocate(const uint8_t gpu[16], uint64_t size, uint32_t flags, int *status,
                                 struct kyb_grant *grant);
enum kyb_answer kyb_ask_wait(const uint8_t gpu[16], uint64_t size, int *status);
void kyb_tell_free(const uint64_t *ids, size_t count);
void kyb_grant_close(struct kyb_grant *grant);

/* Packets, used by agent.c, control.c and sharing.c. */
int kyb_connect(const char *path, int timeout_seconds);
bool kyb_send(int socket, struct kyb_message *message, const struct kyb_extent *records, const int *fds);
/* One packet; fds must hold KYB_RECORDS_MAX, those received are owned by the caller. false: hung up, timed out or
 * malformed. */
bool kyb_receive(int socket, struct kyb_message *message, struct kyb_extent *records, int *fds, size_t *fd_count);

/* ---- allocate.c ---- */

/* Extents for `size` bytes as a new, unlisted block, waiting for room outside the gates where needed. Called with the
 * memory gate entered; it may leave and enter again. CUDA_SUCCESS; an error; or -1: the agent is away, allocate natively. */
int kyb_obtain(enum kyb_block_kind kind, int device, uint64_t size, uint32_t flags, struct kyb_block **block);
int kyb_place(struct kyb_block *block, uint64_t *address); /* reserve, map, record an ALLOCATION */
/* With the lock held; then kyb_forget(gone). */
int kyb_free_allocation(struct kyb_mapping *mapping, struct kyb_block **gone);

/* ---- kept.c ---- */

#define KYB_KEPT_NS 1000000000 /* what is kept goes back when nobody wanted it for so long */

extern _Atomic unsigned kyb_kept_count;
/* With the lock held. `context`: the one whose work was waited for. false: not one to keep. Older ones may have to
 * go. */
bool kyb_keep(struct kyb_mapping *mapping, void *context, struct kyb_block **gone);
bool kyb_take_kept(uint64_t size, uint64_t requested, int device, void *context, uint64_t *address);
bool kyb_unmap_kept(int64_t idle_ns, struct kyb_block **gone); /* with the lock held; then kyb_forget(gone) */
/* What was kept for that long; false: the driver kept one from being unmapped. */
bool kyb_give_back_kept(int64_t idle_ns);
/* Gives all back and keeps nothing until kyb_need_ends(); false: there was none. */
bool kyb_need_begins(void);
void kyb_need_ends(void);
void kyb_kept_gone(struct kyb_block *block); /* with the lock held, when a kept block is freed */
uint64_t kyb_kept_bytes(int device);
void kyb_kept_after_fork(void);

/* ---- control.c ---- */

bool kyb_control_start(void);
void kyb_control_after_fork(void);

#endif
