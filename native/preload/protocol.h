/* The words the preload library and the agent exchange.
 *
 * Both directions use Unix SOCK_SEQPACKET sockets addressed by path, little-endian, one struct kyb_message a packet,
 * followed by `count` struct kyb_extent records; file descriptors travel as SCM_RIGHTS beside the packet, one for
 * each record, in record order, where the message type says so.  A list longer than KYB_RECORDS_MAX is split over
 * several packets; all but the last carry KYB_FLAG_MORE.
 *
 *   workload -> agent    RUN_DIRECTORY/agent.sock            one request a connection
 *   agent -> workload    RUN_DIRECTORY/control/<pid>.sock    one operation a connection
 *
 * A control connection that breaks is an undo: HELD and QUIET open the gates again; RELEASED with every descriptor
 * still held maps again and opens. Once anything was discarded (or DISCARD without records said so) the process waits
 * for MAP or REMAP.
 *
 * <pid> is the process id as the workload itself sees it.  Python's twin of this file is src/kybernate/cuda/wire.py;
 * tests/cuda/test_wire.py holds the two together.
 */
#ifndef KYBERNATE_PROTOCOL_H
#define KYBERNATE_PROTOCOL_H

#include <stdint.h>

#define KYB_MAGIC 0x3142594bU /* "KYB1" */
#define KYB_VERSION 1
#define KYB_RECORDS_MAX 128 /* under SCM_RIGHTS' limit of 253 descriptors */
#define KYB_REASON_MAX 232  /* bytes, UTF-8, NUL-terminated */

enum kyb_type {
    /* workload -> agent */
    /* argument: pid inside the workload. Sent once, after cuInit: memory of that pid was an earlier program's (exec) */
    KYB_HELLO = 1,
    /* argument: bytes, gpu: where; flags: SINGLE, RDMA. Answer: records with fds, or status WAIT / OUT_OF_MEMORY */
    KYB_ALLOCATE = 2,
    KYB_FREE = 3, /* records: ids that the process has unmapped, released and closed */
    KYB_WAIT = 4, /* argument: bytes, gpu. Answered when an ALLOCATE of that size may succeed, or OUT_OF_MEMORY */

    /* agent -> workload */
    KYB_STATUS = 16, /* answer: argument = enum kyb_state, counters in reason as text */
    /* argument: timeout in milliseconds. OPEN or HELD -> QUIET with all records, or BUSY / UNSUPPORTED and still
     * OPEN */
    KYB_QUIESCE = 17,
    /* QUIET -> RELEASED: unmapped and handles released, descriptors kept;
     * or BUSY (a question isn't answered yet) and still QUIET */
    KYB_RELEASE = 18,
    KYB_DISCARD = 19, /* records: ids whose content is safe elsewhere; their descriptors are closed. No records: all */
    KYB_MAP = 20,  /* records with fds: new memory for these ids' places; the last packet turns RELEASED into QUIET */
    KYB_OPEN = 21, /* QUIET -> OPEN: the gates open */
    KYB_EXTENTS = 22, /* answer: every extent with a duplicate of its fd, for an agent that came back */
    /* argument: timeout in milliseconds, flags: STEP. OPEN -> HELD, whatever the GPU does; answer: flag IDLE, or reason
     * says why not within that time. A stream capture may open the gates again (argument: state); UNSUPPORTED does. */
    KYB_HOLD = 25,
    KYB_REMAP = 23, /* RELEASED -> QUIET: map again from the descriptors kept (the undo of RELEASE) */

    /* workload -> workload, processes of one workload */
    /* argument: address of an allocation opened by legacy IPC. Answer: its records with fds, argument = bytes */
    KYB_SHARE = 24,

    KYB_ANSWER = 64 /* type of every answer is the request's type + KYB_ANSWER */
};

enum kyb_status {
    KYB_OK = 0,
    KYB_BUSY = 1,          /* reason says why; nothing was changed */
    KYB_UNSUPPORTED = 2,   /* reason says why; nothing was changed */
    KYB_WAIT_FIRST = 3,    /* ALLOCATE: doesn't fit now; send WAIT, then ask again */
    KYB_OUT_OF_MEMORY = 4, /* ALLOCATE, WAIT: will never fit */
    KYB_BAD_REQUEST = 5,   /* reason says what was wrong; nothing was changed */
    KYB_FAILED = 6         /* reason names the CUDA call and its error */
};

/* Where the process's GPU memory stands. */
enum kyb_state {
    KYB_STATE_OPEN = 0,    /* running */
    KYB_STATE_QUIET = 1,   /* gates closed, GPU idle, memory mapped */
    KYB_STATE_HELD = 3,    /* no kernel launch passes; memory calls do, since what runs may wait for them */
    KYB_STATE_RELEASED = 2 /* gates closed, nothing mapped; descriptors kept until DISCARD */
};

enum kyb_flag {
    KYB_FLAG_MORE = 1,   /* another packet of this list follows */
    KYB_FLAG_SINGLE = 2, /* ALLOCATE: one extent, however large (the application may export it) */
    KYB_FLAG_RDMA = 4,   /* ALLOCATE: allocFlags.gpuDirectRDMACapable */
    KYB_FLAG_PARTIAL =
        32,             /* STATUS: some extents were discarded: only the agent's copy and the rest are whole together */
    KYB_FLAG_STEP = 64, /* HOLD: let the next launch pass first if one comes in time: a kernel may wait for it */
    KYB_FLAG_IDLE = 128,     /* HOLD: the GPU has finished what the process gave it */
    KYB_FLAG_COMMITTED = 16, /* STATUS: DISCARD without records came: the content is safe with the agent */
    KYB_FLAG_NO_FD = 8 /* EXTENTS: this record's descriptor has been discarded (per record, in kyb_extent.flags) */
};

struct kyb_message {
    uint32_t magic;
    uint16_t version;
    uint16_t type;  /* enum kyb_type (+ KYB_ANSWER) */
    int32_t status; /* enum kyb_status; 0 in requests */
    uint32_t count; /* records that follow in this packet */
    uint32_t flags; /* enum kyb_flag */
    uint32_t reserved;
    uint64_t argument;
    uint8_t gpu[16]; /* CUuuid of the GPU, for ALLOCATE and WAIT */
    char reason[KYB_REASON_MAX];
};

struct kyb_extent {
    uint64_t id;      /* chosen by the agent, unique over its restarts */
    uint64_t address; /* where the process maps it, 0 when unmapped; informative */
    uint64_t size;    /* bytes, a multiple of 2 MiB */
    uint8_t gpu[16];
    uint32_t flags; /* enum kyb_flag */
    uint32_t reserved;
};

_Static_assert(sizeof(struct kyb_message) == 280, "wire layout");
_Static_assert(sizeof(struct kyb_extent) == 48, "wire layout");

#endif
