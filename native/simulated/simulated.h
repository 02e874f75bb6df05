/* What the simulated driver's files share. See README.md for the picture.
 *
 * Locks, outermost first: memory_lock (every table of memory), then queue_lock (streams, events, graphs),
 * then the gate's own. Copies and kernels run with none of them held.
 */
#ifndef KYBERNATE_SIMULATED_H
#define KYBERNATE_SIMULATED_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "abi.h"

/* Protected: our own calls and our resolver never land in a library that is preloaded over this one. */
#define EXPORT __attribute__((visibility("protected")))

/* Declares and begins an exported function; the prototype keeps -Wmissing-prototypes quiet. */
#define API(name, ...)                 \
    EXPORT CUresult name(__VA_ARGS__); \
    EXPORT CUresult name(__VA_ARGS__)

/* A second exported name of the same function. */
#define ALIAS(target, name, ...) EXPORT CUresult name(__VA_ARGS__) __attribute__((alias(#target)))

/* First line of (nearly) every exported function: wait while the process is locked, count as inside, leave
 * at return. ENTER also demands cuInit, ENTER_CONTEXT a healthy current context. */
#define ENTER_ALWAYS() __attribute__((cleanup(gate_leave), unused)) int gate_token = gate_enter()
#define ENTER()                                \
    ENTER_ALWAYS();                            \
    do {                                       \
        if (!driver_ready())                   \
            return CUDA_ERROR_NOT_INITIALIZED; \
    } while (0)
#define ENTER_CONTEXT(context)                              \
    ENTER();                                                \
    struct context *context = NULL;                         \
    do {                                                    \
        CUresult context_error = context_current(&context); \
        if (context_error)                                  \
            return context_error;                           \
    } while (0)

#define GPUS_MAX 8
#define GRANULARITY ((size_t)2 << 20) /* bytes; the unit of physical memory, as on the real driver */
#define PATH_BYTES 4096
#define DRIVER_VERSION 13000

static inline size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

/* gate.c: every call waits here while the process is locked. */
int gate_enter(void);
void gate_leave(int *token);
bool gate_close(int timeout_ms, bool (*still_wanted)(void *), void *argument);
void gate_open(void);
void gate_after_fork(void);

/* init.c */
bool driver_ready(void);
extern pthread_mutex_t memory_lock;

/* gpu.c: the directories that stand for GPUs. */
struct gpu {
    char path[PATH_BYTES];
    CUuuid uuid;
    dev_t device;         /* of the directory's file system */
    uint64_t limit;       /* bytes, from the file `size`; 0: the file system is the limit */
    uint64_t own;         /* bytes this process created, counted for `limit`; under memory_lock */
    int arena;            /* file of this process's native memory, -1 until needed */
    off_t arena_end;      /* offsets are never reused: a hole is punched instead */
    struct pool *pool;    /* default memory pool, made on demand */
    struct pool *current; /* pool that cuMemAllocAsync takes from */
};
extern struct gpu gpus[GPUS_MAX];
extern int gpu_count;
CUresult gpus_open(void);
CUresult gpu_reopen(struct gpu *gpu, const CUuuid *wanted);
bool gpu_valid(CUdevice device);
uint64_t gpu_total(const struct gpu *gpu);
uint64_t gpu_free(const struct gpu *gpu);
int gpu_file(const struct gpu *gpu);

/* physical.c: physical memory. All under memory_lock, but for physical_allocate's own waiting. */
enum origin { ORIGIN_NATIVE, ORIGIN_CREATED, ORIGIN_IMPORTED, ORIGIN_IPC };
struct physical {
    struct physical *next, *previous;
    int gpu;
    enum origin origin;
    bool placed;   /* false: checkpointed */
    int fd;        /* -1: in the GPU's arena, or not placed */
    off_t offset;
    size_t size;
    unsigned references; /* handles + mappings */
    unsigned handles;
    CUmemAllocationProp properties;
    uint64_t id;
    void *saved;   /* private host copy while checkpointed */
};
extern struct physical *physical_list;
CUresult physical_create(int gpu, enum origin origin, size_t size, struct physical **out);
CUresult physical_adopt(int gpu, enum origin origin, int fd, off_t offset, size_t size, struct physical **out);
void physical_put(struct physical *physical);
bool physical_valid(const struct physical *physical);
int physical_descriptor(const struct physical *physical);
CUresult physical_save(struct physical *physical);
CUresult physical_restore(struct physical *physical);
void physical_close(struct physical *physical);

/* space.c: addresses. Everything under memory_lock, but for space_accessible. */
enum kind { KIND_ALLOCATION, KIND_MAPPING, KIND_HOST, KIND_REGISTERED, KIND_MANAGED, KIND_IPC };
struct range {
    uint64_t base;
    size_t size;
    enum kind kind;
    int gpu;
    int access;             /* CU_MEM_ACCESS_* */
    unsigned flags;         /* as the caller gave them: host memory, managed */
    struct physical *physical; /* NULL for slab pieces and host memory */
    struct slab *slab;
    struct context *context;
    struct pool *pool;
    bool sync_memops;       /* as cuPointerSetAttribute said */
    bool exported;          /* a legacy IPC handle of it was given out */
    uint64_t map_base;      /* KIND_IPC: where its physical memory is mapped */
    uint64_t id;
};
extern struct range **space_ranges; /* sorted by base */
extern size_t space_count;
uint64_t space_reserve(size_t size, size_t alignment, uint64_t wanted);
bool space_release(uint64_t base, size_t size);
bool space_reserved(uint64_t base, size_t size);
CUresult space_map(uint64_t address, const struct physical *physical, int access);
void space_unmap(uint64_t address, size_t size);
CUresult space_protect(uint64_t address, size_t size, int access);
CUresult space_insert(const struct range *range, struct range **out);
void space_remove(struct range *range);
struct range *space_find(uint64_t address);
size_t space_index(uint64_t address);
bool space_overlaps(uint64_t address, size_t size);
bool space_accessible(uint64_t address, size_t size, bool write, struct range **first);
bool space_is_device(uint64_t address);
extern uint64_t next_id;

/* memory.c: native allocations. */
struct slab {
    struct slab *next;
    uint64_t base;
    int gpu;
    struct physical *physical;
    unsigned used;      /* granules */
    uint64_t bits[64];  /* granules of 512 bytes in 2 MiB */
};
extern struct slab *slab_list;
CUresult memory_allocate(struct context *context, struct pool *pool, size_t size, CUdeviceptr *out);
CUresult memory_free(CUdeviceptr address);

/* pool.c */
struct pool {
    struct pool *next;
    int gpu;
    uint64_t threshold, used, used_high;
    bool custom;
};
void pool_account(struct pool *pool, int64_t bytes);

/* context.c */
struct context {
    struct context *next;
    uint64_t magic;
    CUdevice device;
    bool primary;
    unsigned retained;
    unsigned flags;
    uint64_t id;
    _Atomic int sticky;  /* CUresult that every later call returns */
    struct stream *legacy;
};
CUresult context_current(struct context **out);
void context_poison(struct context *context, CUresult error);
bool context_valid(const struct context *context);

/* stream.c: work and the queues it waits in. */
enum work_kind {
    WORK_KERNEL,
    WORK_COPY,
    WORK_SET,
    WORK_HOST,
    WORK_CALLBACK,
    WORK_RECORD,
    WORK_AWAIT,
    WORK_FREE,
    WORK_GRAPH,
    WORK_WRITE_VALUE,
    WORK_WAIT_VALUE
};
#define WORK_ARGUMENTS 8
struct work {
    struct work *next;
    enum work_kind kind;
    struct context *context;
    uint64_t sequence;
    struct {
        struct stream *stream;
        uint64_t sequence;
    } *after; /* work of other streams to wait for */
    unsigned after_count;
    union {
        struct {
            const struct kernel *kernel;
            uint64_t arguments[WORK_ARGUMENTS];
        } launch;
        struct {
            uint64_t destination, source;
            size_t width, rows, destination_pitch, source_pitch;
            bool crosses_link;
        } copy;
        struct {
            uint64_t destination;
            uint32_t value;
            unsigned element; /* bytes: 1, 2 or 4 */
            size_t width, rows, pitch; /* width in elements, pitch in bytes */
        } set;
        struct {
            CUhostFn function;
            void (*callback)(CUstream, CUresult, void *);
            CUstream stream;
            void *data;
        } host;
        struct {
            struct event *event;
            uint64_t record;
        } event;
        struct {
            struct graph *graph;
        } graph;
        struct {
            uint64_t address, value;
            unsigned flags, bytes;
        } value;
        uint64_t address;
    } u;
};
struct stream {
    struct stream *next;
    uint64_t magic;
    struct context *context;
    unsigned flags;
    int priority;
    uint64_t id;
    unsigned references;
    bool destroyed;
    bool owned; /* a thread's own default stream: never freed, that thread points to it */
    uint64_t submitted, completed;
    struct work *head, **tail;
    bool worker;
    struct graph *capture;
    bool capture_invalid;
    bool capture_origin;
};
extern pthread_mutex_t queue_lock;
extern pthread_cond_t queue_changed;
CUresult stream_resolve(struct context *context, CUstream handle, struct stream **out);
enum wait { WAIT_NOT, WAIT_DONE, WAIT_UNLESS_CAPTURED };
CUresult stream_submit(CUstream handle, struct work *work, enum wait wait);
CUresult stream_wait_idle(struct stream *stream);
CUresult context_wait_idle(struct context *context);
CUresult work_run(struct work *work);
uint64_t word_look(uint64_t address, unsigned bytes);
bool work_blocks(const struct work *work);
void stream_leave_capture(const struct graph *graph);
bool queue_wait_idle(int timeout_ms);
void streams_of_context_drop(struct context *context);
uint64_t clock_ns(void);

/* event.c */
struct event {
    uint64_t magic;
    unsigned flags;
    unsigned references;
    uint64_t recorded, completed; /* numbers of records */
    uint64_t when;                /* ns, of the last completed record */
    struct graph *captured;       /* recorded in a stream that captures */
};
void event_put(struct event *event);

/* graph.c: under queue_lock. */
struct graph {
    uint64_t magic;
    unsigned references;
    struct work *first, *last;
    size_t count;
    uint64_t id;
};
struct graph *graph_new(void);
struct work *graph_append(struct graph *graph, const struct work *work);
CUresult graph_add_node(CUgraph graph, const struct work *work, CUgraphNode *out);
void graph_put(struct graph *graph);
void work_drop(struct work *work);

/* module.c, kernels.c */
struct kernel {
    const char *name;
    unsigned count;                 /* of arguments */
    unsigned char bytes[WORK_ARGUMENTS]; /* of each argument */
    bool (*run)(const uint64_t *arguments); /* false: touched memory it may not */
    bool blocks;                    /* may run for ever: on a thread of its own */
};
extern const struct kernel kernels[];
extern const size_t kernel_count;
const struct kernel *function_kernel(CUfunction function);

/* link.c: how fast bytes cross between host and device. */
void link_delay(size_t bytes, uint64_t began_ns);

/* target.c: the process's side of a checkpoint. */
CUresult target_start(void);
void target_after_fork(void);
void target_name(char *out, size_t size);
struct sockaddr_un;
socklen_t target_abstract(const char *name, struct sockaddr_un *address);

/* The words on a process's socket. */
enum target_operation { TARGET_STATE = 1, TARGET_LOCK, TARGET_CHECKPOINT, TARGET_RESTORE, TARGET_UNLOCK, TARGET_FETCH };
#define TARGET_MAGIC 0x4d53594bU
struct target_request {
    uint32_t magic;
    uint32_t operation;
    uint32_t timeout_ms;
    uint32_t pairs;
    uint64_t offset, size; /* TARGET_FETCH */
    CUcheckpointGpuPair pair[GPUS_MAX];
};
struct target_answer {
    uint32_t magic;
    int32_t result; /* CUresult */
    int32_t state;
    int32_t thread; /* as the process itself sees it */
};

/* resolve.c */
CUresult resolve(const char *name, void **out, int version, uint64_t flags, int *status);

/* image.c: what Checkpoint and Restore do to the process's memory. */
CUresult image_save(void);
CUresult image_restore(const CUcheckpointGpuPair *pairs, unsigned count);
bool image_lost(void);

#endif
