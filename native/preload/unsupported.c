/* What forbids a pause: counted by the wrappers of the calls that begin and end it. */
#include <stdatomic.h>
#include <stddef.h>

#include "unsupported.h"

_Atomic int kyb_managed, kyb_foreign, kyb_exports, kyb_external, kyb_multicast, kyb_endpoints, kyb_ipc_opened,
    kyb_ipc_exported, kyb_ipc_events;

const char *kyb_unsupported(void)
{
    if (atomic_load(&kyb_managed) > 0)
        return "the process holds managed memory (cuMemAllocManaged), which the driver can't checkpoint";
    if (atomic_load(&kyb_ipc_opened) > 0)
        return "the process has CUDA IPC memory of another process open (cuIpcOpenMemHandle)";
    if (atomic_load(&kyb_ipc_exported) > 0)
        return "the process shares memory by CUDA IPC (cuIpcGetMemHandle) that it has not freed";
    if (atomic_load(&kyb_foreign) > 0)
        return "the process has imported memory of another process (cuMemImportFromShareableHandle)";
    if (atomic_load(&kyb_exports) > 0)
        return "the process has exported memory (cuMemExportToShareableHandle) that it has not freed";
    if (atomic_load(&kyb_external) > 0)
        return "the process has imported memory of another API (cuImportExternalMemory)";
    if (atomic_load(&kyb_multicast) > 0) return "the process uses multicast objects (cuMulticastCreate)";
    if (atomic_load(&kyb_endpoints) > 0) return "the process uses logical endpoints (cuLogicalEndpointCreate)";
    if (atomic_load(&kyb_ipc_events) > 0) return "the process shares events by CUDA IPC";
    return NULL;
}
