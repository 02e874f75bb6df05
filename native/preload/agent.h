/* Asks the agent. See agent.c. */
#ifndef KYBERNATE_AGENT_H
#define KYBERNATE_AGENT_H

#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

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

#endif
