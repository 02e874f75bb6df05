/* Contexts, stream captures, peers. See contexts.c. */
#ifndef KYBERNATE_CONTEXTS_H
#define KYBERNATE_CONTEXTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memory.h"

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

#endif
