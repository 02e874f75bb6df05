/* Freed allocations that wait for the next one of their size. See free_cache.c. */
#ifndef KYBERNATE_FREE_CACHE_H
#define KYBERNATE_FREE_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "memory.h"

#define KYB_FREE_CACHE_NS 1000000000 /* a cached block goes back when nothing wanted it for so long */

/* With the lock held. `context`: the one whose work was waited for. false: not a block to cache. Older ones may have to
 * go; then kyb_forget(gone). */
bool kyb_free_cache_put(struct kyb_mapping *mapping, void *context, struct kyb_block **gone);
bool kyb_free_cache_take(uint64_t size, uint64_t requested, int device, void *context, uint64_t *address);

/* What was cached for that long goes back; false: the driver kept one from being unmapped. */
bool kyb_free_cache_flush(int64_t idle_ns);
bool kyb_free_cache_unmap(int64_t idle_ns, struct kyb_block **gone); /* with the lock held; then kyb_forget(gone) */

/* Empties it and caches nothing until kyb_free_cache_resume(); false: it was empty. */
bool kyb_free_cache_suspend(void);
void kyb_free_cache_resume(void);

void kyb_free_context(void *context); /* what cuMemAlloc gave out under a context that is gone, cached or not */
uint64_t kyb_free_cache_bytes(int device);
void kyb_free_cache_after_fork(void);

#endif
