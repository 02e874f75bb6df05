/* The questions put to the agent: connect, ask, hang up. Nothing stays connected between questions. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "packets.h"
#include "process.h"

#define ANSWER_SECONDS 60 /* an agent slower than this is treated as away */

static int call_agent(int timeout_seconds)
{
    char path[128];
    if (snprintf(path, sizeof path, "%s/agent.sock", kyb_run_directory) >= (int)sizeof path) return -1;
    int fd = kyb_connect(path, timeout_seconds);
    if (fd < 0) {
        static _Atomic bool said;
        kyb_say_once(&said,
                     "no agent answers on %s: new GPU memory stays with the driver (slower to pause) until one does",
                     path);
    }
    return fd;
}

/* One question with one answer, which has neither records nor descriptors. */
static enum kyb_answer ask(struct kyb_message *message, const struct kyb_extent *records, int timeout_seconds)
{
    int saved = errno;
    enum kyb_answer answer = KYB_AWAY;
    int fd = call_agent(timeout_seconds);
    if (fd >= 0) {
        struct kyb_extent ignored[KYB_RECORDS_MAX];
        int fds[KYB_RECORDS_MAX];
        size_t fd_count = 0;
        if (kyb_send(fd, message, records, NULL) && kyb_receive(fd, message, ignored, fds, &fd_count))
            answer = KYB_ANSWERED;
        while (fd_count > 0) close(fds[--fd_count]);
        close(fd);
    }
    errno = saved;
    return answer;
}

enum kyb_answer kyb_ask_hello(void)
{
    struct kyb_message message = {.type = KYB_HELLO, .argument = (uint64_t)getpid()};
    return ask(&message, NULL, ANSWER_SECONDS);
}

enum kyb_answer kyb_ask_wait(const uint8_t gpu[16], uint64_t size, int *status)
{
    struct kyb_message message = {.type = KYB_WAIT, .argument = size};
    memcpy(message.gpu, gpu, 16);
    enum kyb_answer answer = ask(&message, NULL, 0); /* as long as it takes */
    *status = message.status;
    return answer;
}

void kyb_tell_free(const uint64_t *ids, size_t count)
{
    struct kyb_extent records[KYB_RECORDS_MAX];
    while (count > 0) {
        struct kyb_message message = {.type = KYB_FREE,
                                      .count = count < KYB_RECORDS_MAX ? (uint32_t)count : KYB_RECORDS_MAX};
        uint32_t sent = message.count;
        for (uint32_t i = 0; i < sent; i++) records[i] = (struct kyb_extent){.id = ids[i]};
        if (ask(&message, records, ANSWER_SECONDS) == KYB_AWAY) return;
        /* One that a new agent never heard of; it takes all or none. */
        if (message.status == KYB_BAD_REQUEST && sent > 1)
            for (uint32_t i = 0; i < sent; i++) kyb_tell_free(ids + i, 1);
        ids += sent;
        count -= sent;
    }
}

void kyb_grant_close(struct kyb_grant *grant)
{
    for (size_t i = 0; i < grant->count; i++)
        if (grant->fds[i] >= 0) close(grant->fds[i]);
    free(grant->fds);
    free(grant->records);
    *grant = (struct kyb_grant){0};
}

static bool append(struct kyb_grant *grant, const struct kyb_extent *records, const int *fds, size_t count)
{
    struct kyb_extent *more_records = realloc(grant->records, (grant->count + count) * sizeof *records);
    if (more_records) grant->records = more_records;
    int *more_fds = realloc(grant->fds, (grant->count + count) * sizeof *fds);
    if (more_fds) grant->fds = more_fds;
    if (!more_records || !more_fds) return false;
    memcpy(grant->records + grant->count, records, count * sizeof *records);
    memcpy(grant->fds + grant->count, fds, count * sizeof *fds);
    grant->count += count;
    return true;
}

enum kyb_answer kyb_ask_allocate(const uint8_t gpu[16], uint64_t size, uint32_t flags, int *status,
                                 struct kyb_grant *grant)
{
    int saved = errno;
    enum kyb_answer answer = KYB_AWAY;
    int fd = call_agent(ANSWER_SECONDS);
    if (fd >= 0) {
        struct kyb_message message = {.type = KYB_ALLOCATE, .argument = size, .flags = flags};
        memcpy(message.gpu, gpu, 16);
        bool going = kyb_send(fd, &message, NULL, NULL);
        while (going) {
            struct kyb_extent records[KYB_RECORDS_MAX];
            int fds[KYB_RECORDS_MAX];
            size_t fd_count = 0;
            going = kyb_receive(fd, &message, records, fds, &fd_count);
            if (!going) break;
            if (fd_count != message.count || (message.count && !append(grant, records, fds, message.count))) {
                while (fd_count > 0) close(fds[--fd_count]);
                break;
            }
            if (message.status == KYB_OK && (message.flags & KYB_FLAG_MORE)) continue;
            *status = message.status;
            answer = KYB_ANSWERED;
            break;
        }
        close(fd);
    }
    if (answer == KYB_AWAY) kyb_grant_close(grant);
    errno = saved;
    return answer;
}
