/* The few types and values of the CUDA driver API's binary interface that this library needs.
 * Written from the public documentation; handles are opaque pointers, enumerations int. */
#ifndef KYBERNATE_CUDA_ABI_H
#define KYBERNATE_CUDA_ABI_H

#include <stdint.h>

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908,
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
};

enum { CU_MEM_ALLOCATION_TYPE_PINNED = 1 };
enum { CU_MEM_LOCATION_TYPE_DEVICE = 1 };
enum { CU_MEM_HANDLE_TYPE_NONE = 0, CU_MEM_HANDLE_TYPE_POSIX_FD = 1 };
enum { CU_MEM_ACCESS_NONE = 0, CU_MEM_ACCESS_READ_WRITE = 3 };

enum {
    CU_POINTER_ATTRIBUTE_CONTEXT = 1,
    CU_POINTER_ATTRIBUTE_SYNC_MEMOPS = 6,
    CU_POINTER_ATTRIBUTE_BUFFER_ID = 7,
    CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE = 10,
    CU_POINTER_ATTRIBUTE_RANGE_START_ADDR = 11,
    CU_POINTER_ATTRIBUTE_RANGE_SIZE = 12,
    CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES = 14,
    CU_POINTER_ATTRIBUTE_MAPPING_SIZE = 18,
    CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR = 19,
    CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID = 20,
};

struct kyb_mem_location {
    int type;
    int id;
};

struct kyb_mem_access {
    struct kyb_mem_location location;
    int flags;
};

struct kyb_mem_prop {
    int type;
    int requested_handle_types;
    struct kyb_mem_location location;
    void *win32_metadata;
    struct {
        unsigned char compression_type;
        unsigned char gpu_direct_rdma_capable;
        unsigned short usage;
        unsigned char reserved[4];
    } flags;
};

struct kyb_ipc_handle {
    char bytes[64];
};

_Static_assert(sizeof(struct kyb_mem_prop) == 32, "CUmemAllocationProp");
_Static_assert(sizeof(struct kyb_mem_access) == 12, "CUmemAccessDesc");

#endif
