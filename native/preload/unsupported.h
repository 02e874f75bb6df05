/* What forbids a pause, counted by whoever sees it happen. */
#ifndef KYBERNATE_UNSUPPORTED_H
#define KYBERNATE_UNSUPPORTED_H

#include <stdatomic.h>

extern _Atomic int kyb_managed, kyb_foreign, kyb_exports, kyb_external, kyb_multicast, kyb_endpoints, kyb_ipc_opened,
    kyb_ipc_exported, kyb_ipc_events;

const char *kyb_unsupported(void); /* why this process can't be paused now, or NULL */

#endif
