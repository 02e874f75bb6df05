/* The GPU memory of the process: blocks of extents, and where they are mapped. See memory.c. */
#ifndef KYBERNATE_MEMORY_H
#define KYBERNATE_MEMORY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda_abi.h"
#include "protocol.h"

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
    bool cached;   /* ALLOCATION: freed by the application, mapped still (free_cache.c) */
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
extern _Atomic unsigned kyb_cached_blocks; /* how many blocks are `cached`, for readers without the lock */

struct kyb_block *kyb_block_new(enum kyb_block_kind kind, size_t pieces);
void kyb_block_list(struct kyb_block *block);
/* Puts it on the list `gone`, for kyb_forget. */
void kyb_block_unlist(struct kyb_block *block, struct kyb_block **gone);
/* Unlisted ones: closes descriptors, tells the agent, frees. Never with the lock held. */
void kyb_forget(struct kyb_block *gone);
struct kyb_block *kyb_block_of_handle(uint64_t logical);
struct kyb_mapping *kyb_mapping_at(uint64_t address); /* the one that contains address, or NULL; none that is cached */
struct kyb_mapping *kyb_mapping_or_cached(uint64_t address);
bool kyb_cached_within(uint64_t address, uint64_t size); /* cached memory touches this range */
bool kyb_mapping_add(uint64_t address, struct kyb_block *block);
uint64_t kyb_new_id(void); /* one that neither we nor the driver have given out */
int kyb_set_sync_memops(uint64_t address, const struct kyb_block *block, int value);
void kyb_mapping_remove(struct kyb_mapping *mapping);
size_t kyb_mapping_range(uint64_t address, uint64_t size, struct kyb_mapping **first);
int kyb_map_pieces(uint64_t address, const struct kyb_block *block); /* import and map each; undone on failure */
/* Unmaps an ALLOCATION or SHARED and frees its address range. With the lock held, the memory gate entered and the GPU
 * waited for, as cuMemFree does (unmapping alone would not); then kyb_forget(gone). */
int kyb_free_allocation(struct kyb_mapping *mapping, struct kyb_block **gone);
void kyb_record_access(struct kyb_mapping *mapping, const struct kyb_mem_access *access, size_t count);

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
void kyb_grant_peer(int owner, int reader);

#endif
