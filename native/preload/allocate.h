/* Allocations as extents. See allocate.c. */
#ifndef KYBERNATE_ALLOCATE_H
#define KYBERNATE_ALLOCATE_H

#include <stdint.h>

#include "memory.h"

/* Extents for `size` bytes as a new, unlisted block, waiting for VRAM outside the gates where needed. Called with the
 * memory gate entered; it may leave and enter again. CUDA_SUCCESS; an error; or -1: the agent is away, so allocate
 * natively. */
int kyb_obtain(enum kyb_block_kind kind, int device, uint64_t size, uint32_t flags, struct kyb_block **block);
int kyb_map_allocation(struct kyb_block *block, uint64_t *address); /* reserve, map, record an ALLOCATION */

#endif
