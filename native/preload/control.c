/* The control thread: answers the agent on a socket in the run directory and moves this process between its states.
 *
 *      OPEN --QUIESCE--> QUIET --RELEASE--> RELEASED --MAP or REMAP--> QUIET --OPEN--> OPEN
 *
 * Where a kernel of one process may wait for a kernel of another, HOLD comes before QUIESCE: first no process of the
 * tree launches any more and all GPU work has ended, and only then are memory calls stopped anywhere.
 *
 * One connection at a time, one operation a connection. A connection that breaks is an undo (protocol.h): a dead
 * agent never leaves a process standing still whose memory is still there.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "contexts.h"
#include "control.h"
#include "drain.h"
#include "driver.h"
#include "free_cache.h"
#include "gate.h"
#include "memory.h"
#include "packets.h"
#include "process.h"
#include "protocol.h"
#include "sharing.h"
#include "unsupported.h"

#define IDLE_MS 10000 /* a connection that says nothing while nothing is going on is closed */
#define LONGEST_DRAIN_MS 3600000
#define LIST_PAUSE_NS 100000000
#define SYNCHRONISE_NS 2000000 /* what a look at an idle GPU may take, whatever time was left */
#define ASK_NS 5000000000      /* what a question about an address may take, on a busy machine too */
#define LOOK_MS 1000           /* so often, at most, it looks for memory that is kept for too long */

static int listener = -1;
static _Atomic int connection = -1; /* the one being served */
static enum kyb_state state;
static bool committed;      /* RELEASED: the agent has all content */
static bool partial;        /* RELEASED: the agent has some of it */
static _Atomic bool ending; /* the process is at its end */

struct request {
    int socket;
    struct kyb_message message;
    struct kyb_extent records[KYB_RECORDS_MAX];
    int fds[KYB_RECORDS_MAX];
    size_t fd_count;
};

static bool reply(struct request *request, int status, const char *reason)
{
    struct kyb_message answer = {.type = request->message.type + KYB_ANSWER, .status = status, .argument = state};
    if (reason) snprintf(answer.reason, sizeof answer.reason, "%s", reason);
    return kyb_send(request->socket, &answer, NULL, NULL);
}

/* All extents, over as many packets as it takes. */
static bool reply_extents(struct request *request, bool with_fds)
{
    size_t total = kyb_extent_count(), sent = 0;
    struct kyb_extent *records = calloc(total ? total : 1, sizeof *records);
    int *fds = calloc(total ? total : 1, sizeof *fds);
    bool good = records && fds;
    if (good) total = kyb_extents(records, fds, total);
    while (good) {
        size_t count = total - sent < KYB_RECORDS_MAX ? total - sent : KYB_RECORDS_MAX;
        bool more = sent + count < total;
        struct kyb_message answer = {.type = request->message.type + KYB_ANSWER,
                                     .count = (uint32_t)count,
                                     .flags = more ? KYB_FLAG_MORE : 0,
                                     .argument = state};
        good = kyb_send(request->socket, &answer, records + sent, with_fds ? fds + sent : NULL);
        sent += count;
        if (!more) break;
    }
    free(records);
    free(fds);
    return good;
}

static void *enter_context(void)
{
    struct kyb_contexts contexts;
    kyb_contexts(&contexts);
    if (!contexts.count || kyb_driver.cuCtxPushCurrent_v2(contexts.list[0]) != CUDA_SUCCESS) return NULL;
    return contexts.list[0];
}

static void leave_context(void *context)
{
    void *popped;
    if (context) kyb_driver.cuCtxPopCurrent_v2(&popped);
}

static bool map_all(char *reason, size_t size)
{
    void *context = enter_context();
    bool mapped = kyb_map_all(reason, size);
    leave_context(context);
    return mapped;
}

/* ---- the operations ---- */

static void open_gates(void)
{
    state = KYB_STATE_OPEN;
    committed = partial = false;
    kyb_gate_open();
}

static bool close_launch_gate(int64_t deadline, char *reason, size_t size)
{
    for (;;) {
        kyb_gate_close(KYB_GATE_LAUNCH);
        if (!kyb_gate_drained(KYB_GATE_LAUNCH, deadline)) {
            snprintf(reason, size, "a thread is held up inside a kernel launch");
            return false;
        }
        if (!kyb_open_captures()) return true;
        /* A capture needs the gate open to come to its end. */
        kyb_gate_open();
        if (kyb_now_ns() >= deadline) {
            snprintf(reason, size, "a stream capture is open");
            return false;
        }
        poll(NULL, 0, 1);
    }
}

static int64_t deadline_of(const struct request *request)
{
    uint64_t timeout = request->message.argument < LONGEST_DRAIN_MS ? request->message.argument : LONGEST_DRAIN_MS;
    return kyb_now_ns() + (int64_t)timeout * 1000000;
}

static bool hold(struct request *request)
{
    struct kyb_message answer = {.type = KYB_HOLD + KYB_ANSWER};
    if (state != KYB_STATE_OPEN && state != KYB_STATE_HELD)
        return reply(request, KYB_BAD_REQUEST, "HOLD in a process that is quiet already");
    int64_t deadline = deadline_of(request);
    bool closed = close_launch_gate(deadline, answer.reason, sizeof answer.reason);
    if (closed && request->message.flags & KYB_FLAG_STEP) {
        kyb_gate_step(deadline);
        closed = close_launch_gate(deadline, answer.reason, sizeof answer.reason); /* it may have begun a capture */
    }
    if (kyb_now_ns() + SYNCHRONISE_NS > deadline) deadline = kyb_now_ns() + SYNCHRONISE_NS;
    if (closed && kyb_gpu_idle(deadline, answer.reason, sizeof answer.reason)) answer.flags = KYB_FLAG_IDLE;
    state = atomic_load(&kyb_gates_closed) ? KYB_STATE_HELD : KYB_STATE_OPEN;
    const char *why = kyb_unsupported();
    if (why) {
        open_gates();
        return reply(request, KYB_UNSUPPORTED, why);
    }
    answer.argument = state;
    return kyb_send(request->socket, &answer, NULL, NULL);
}

static bool quiesce(struct request *request)
{
    if (state == KYB_STATE_QUIET) return reply_extents(request, false);
    if (state == KYB_STATE_RELEASED)
        return reply(request, KYB_BAD_REQUEST, "QUIESCE in a process that has released its memory");
    const char *why = kyb_unsupported();
    if (why) {
        open_gates();
        return reply(request, KYB_UNSUPPORTED, why);
    }
    int64_t deadline = deadline_of(request);
    char reason[KYB_REASON_MAX] = "";
    bool quiet = close_launch_gate(deadline, reason, sizeof reason) && kyb_gpu_idle(deadline, reason, sizeof reason);
    if (quiet) {
        kyb_gate_close(KYB_GATE_MEMORY);
        quiet = kyb_gate_drained(KYB_GATE_MEMORY, deadline);
        if (!quiet) snprintf(reason, sizeof reason, "a thread is held up inside a CUDA call");
    }
    quiet = quiet && kyb_gpu_idle(deadline, reason, sizeof reason);
    why = quiet ? kyb_unsupported() : NULL; /* it may have come to be while we waited */
    if (!quiet || why) {
        open_gates();
        return reply(request, why ? KYB_UNSUPPORTED : KYB_BUSY, why ? why : reason);
    }
    state = KYB_STATE_QUIET;
    void *context = enter_context();
    kyb_free_cache_flush(0); /* before the list: nobody copies it */
    leave_context(context);
    return reply_extents(request, false);
}

static bool release(struct request *request)
{
    if (state != KYB_STATE_QUIET)
        return reply(request, KYB_BAD_REQUEST, "RELEASE needs a process made quiet by QUIESCE");
    char reason[KYB_REASON_MAX] = "";
    if (!kyb_all_have_fds())
        return reply(request, KYB_FAILED, "a descriptor of an extent is missing (closed by the application?)");
    /* Opened with the others: the process is quiet, so nothing that is waited for can need it. */
    kyb_gate_close(KYB_GATE_ASK);
    if (!kyb_gate_drained(KYB_GATE_ASK, kyb_now_ns() + ASK_NS))
        return reply(request, KYB_BUSY, "a thread is held up inside a question about an address");
    void *context = enter_context();
    bool unmapped = kyb_unmap_all(reason, sizeof reason);
    leave_context(context);
    if (!unmapped) return reply(request, KYB_FAILED, reason);
    state = KYB_STATE_RELEASED;
    committed = partial = false;
    return reply(request, KYB_OK, NULL);
}

static bool discard(struct request *request)
{
    if (state != KYB_STATE_RELEASED)
        return reply(request, KYB_BAD_REQUEST, "DISCARD needs a process that has released its memory");
    if (request->message.count == 0) {
        kyb_discard_all();
        committed = true;
    }
    for (uint32_t i = 0; i < request->message.count; i++) {
        if (!kyb_discard(request->records[i].id))
            return reply(request, KYB_BAD_REQUEST, "DISCARD of an extent this process does not have");
        partial = true;
    }
    return reply(request, KYB_OK, NULL);
}

static bool map(struct request *request)
{
    char reason[KYB_REASON_MAX] = "";
    if (state != KYB_STATE_RELEASED)
        return reply(request, KYB_BAD_REQUEST, "MAP needs a process that has released its memory");
    if (request->fd_count != request->message.count)
        return reply(request, KYB_BAD_REQUEST, "MAP needs one descriptor for each record");
    for (uint32_t i = 0; i < request->message.count; i++) {
        if (!kyb_set_fd(request->records[i].id, request->fds[i]))
            return reply(request, KYB_BAD_REQUEST, "MAP of an extent this process does not have");
        request->fds[i] = -1;
    }
    if (request->message.flags & KYB_FLAG_MORE) return reply(request, KYB_OK, NULL);
    if (!kyb_all_have_fds()) return reply(request, KYB_BAD_REQUEST, "MAP left extents without memory");
    if (!map_all(reason, sizeof reason)) return reply(request, KYB_FAILED, reason);
    state = KYB_STATE_QUIET;
    return reply(request, KYB_OK, NULL);
}

static bool remap(struct request *request)
{
    char reason[KYB_REASON_MAX] = "";
    if (state != KYB_STATE_RELEASED || !kyb_all_have_fds())
        return reply(request, KYB_BAD_REQUEST, "REMAP needs released memory of which nothing was discarded");
    if (!map_all(reason, sizeof reason)) return reply(request, KYB_FAILED, reason);
    state = KYB_STATE_QUIET;
    return reply(request, KYB_OK, NULL);
}

static bool extents(struct request *request)
{
    if (state == KYB_STATE_HELD) return reply(request, KYB_BAD_REQUEST, "EXTENTS while launches are held");
    if (state != KYB_STATE_OPEN) return reply_extents(request, true);
    /* If it can be had, a moment without memory calls: no allocation is half made then. A thread that waits for a long
     * kernel holds that up, and must not make the process unknown to a new agent; the lock keeps the list and its
     * descriptors whole. */
    kyb_gate_close(KYB_GATE_MEMORY);
    kyb_gate_drained(KYB_GATE_MEMORY, kyb_now_ns() + LIST_PAUSE_NS);
    struct kyb_block *gone = NULL;
    pthread_mutex_lock(&kyb_memory_lock);
    /* It would soon go back, and the new agent might hear of that before it knows of the memory. */
    kyb_free_cache_unmap(0, &gone);
    bool sent = reply_extents(request, true);
    pthread_mutex_unlock(&kyb_memory_lock);
    kyb_gate_open();
    kyb_forget(gone);
    return sent;
}

static bool share(struct request *request)
{
    struct kyb_extent records[KYB_RECORDS_MAX];
    int fds[KYB_RECORDS_MAX];
    size_t count = 0;
    uint64_t size = 0;
    if (state != KYB_STATE_OPEN || !kyb_share(request->message.argument, records, fds, KYB_RECORDS_MAX, &count, &size))
        return reply(request, KYB_BAD_REQUEST, "no allocation shared by CUDA IPC begins there");
    struct kyb_message answer = {.type = KYB_SHARE + KYB_ANSWER, .count = (uint32_t)count, .argument = size};
    return kyb_send(request->socket, &answer, records, fds);
}

static bool status(struct request *request)
{
    struct kyb_message answer = {.type = KYB_STATUS + KYB_ANSWER,
                                 .argument = state,
                                 .flags = (committed ? KYB_FLAG_COMMITTED : 0U) | (partial ? KYB_FLAG_PARTIAL : 0U)};
    const char *why = kyb_unsupported();
    snprintf(answer.reason, sizeof answer.reason, "%s", why ? why : "");
    return kyb_send(request->socket, &answer, NULL, NULL);
}

static bool perform(struct request *request)
{
    switch (request->message.type) {
    case KYB_STATUS: return status(request);
    case KYB_HOLD: return hold(request);
    case KYB_QUIESCE: return quiesce(request);
    case KYB_RELEASE: return release(request);
    case KYB_DISCARD: return discard(request);
    case KYB_MAP: return map(request);
    case KYB_OPEN:
        if (state == KYB_STATE_RELEASED)
            return reply(request, KYB_BAD_REQUEST, "OPEN of a process whose memory is released");
        open_gates();
        return reply(request, KYB_OK, NULL);
    case KYB_EXTENTS: return extents(request);
    case KYB_REMAP: return remap(request);
    case KYB_SHARE: return share(request);
    default: return reply(request, KYB_BAD_REQUEST, "unknown message type");
    }
}

static void hung_up(void)
{
    char reason[KYB_REASON_MAX];
    static _Atomic bool said;
    if (state == KYB_STATE_QUIET || state == KYB_STATE_HELD)
        open_gates();
    else if (state == KYB_STATE_RELEASED && committed)
        kyb_discard_all(); /* of an unfinished MAP */
    else if (state == KYB_STATE_RELEASED && !partial) {
        if (map_all(reason, sizeof reason))
            open_gates();
        else
            kyb_say_once(&said, "could not take back GPU memory after the agent went away (%s): waiting for an agent",
                         reason);
    }
}

static bool may_command(int socket)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && (peer.uid == 0 || peer.uid == geteuid());
}

static void serve(int socket)
{
    static struct request request; /* only this thread's */
    request.socket = socket;
    atomic_store(&connection, socket);
    bool going = may_command(socket);
    while (going) {
        struct pollfd waiting = {.fd = socket, .events = POLLIN};
        int ready = poll(&waiting, 1, state == KYB_STATE_OPEN ? IDLE_MS : -1);
        if (ready < 0 && errno == EINTR) continue;
        if (ready <= 0) break;
        if (!kyb_receive(socket, &request.message, request.records, request.fds, &request.fd_count)) break;
        going = perform(&request);
        for (size_t i = 0; i < request.fd_count; i++)
            if (request.fds[i] >= 0) close(request.fds[i]);
    }
    atomic_store(&connection, -1);
    close(socket);
    hung_up();
}

static void note_end(void)
{
    atomic_store(&ending, true);
}

/* A process at its end gives back everything at once, and its driver is being taken down. */
static void give_back_idle(void)
{
    if (atomic_load(&ending)) return;
    /* No context is entered at first: the application may be destroying it, and the memory calls need none by the
     * driver's manual. */
    if (kyb_free_cache_flush(KYB_FREE_CACHE_NS)) return;
    void *context = enter_context();
    kyb_free_cache_flush(KYB_FREE_CACHE_NS);
    leave_context(context);
}

static void *control(void *argument)
{
    (void)argument;
    pthread_setname_np(pthread_self(), "kybernate");
    kyb_gate_exempt();
    for (;;) {
        struct pollfd waiting = {.fd = listener, .events = POLLIN};
        if (poll(&waiting, 1, LOOK_MS) == 0) {
            if (state == KYB_STATE_OPEN) give_back_idle();
            continue;
        }
        int socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (socket >= 0)
            serve(socket);
        else if (errno != EINTR && errno != ECONNABORTED)
            poll(NULL, 0, 100); /* out of descriptors, say: try again rather than spin */
    }
    return NULL;
}

bool kyb_control_start(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length =
        snprintf(address.sun_path, sizeof address.sun_path, "%s/control/%d.sock", kyb_run_directory, (int)getpid());
    if (length >= (int)sizeof address.sun_path) return false;
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (listener < 0) return false;
    unlink(address.sun_path); /* of the program this one was exec'd from */
    /* A socket's mode becomes its file's. Not umask(): other threads are making files of their own. */
    bool bound = fchmod(listener, 0600) == 0 && bind(listener, (struct sockaddr *)&address, sizeof address) == 0 &&
                 listen(listener, 16) == 0;
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, saved;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    bool started = bound && atexit(note_end) == 0 && pthread_create(&thread, &attributes, control, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attributes);
    if (!started) {
        close(listener);
        listener = -1;
    }
    return started;
}

void kyb_control_after_fork(void)
{
    if (listener >= 0) close(listener);
    listener = -1;
    /* Else the agent would wait for answers of a dead parent for as long as the child lives. */
    int inherited = atomic_exchange(&connection, -1);
    if (inherited >= 0) close(inherited);
    state = KYB_STATE_OPEN;
    committed = partial = false;
}
