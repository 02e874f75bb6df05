/* Packets of protocol.h, to the agent and between processes of one workload. */
#ifndef KYBERNATE_PACKETS_H
#define KYBERNATE_PACKETS_H

#include <stdbool.h>
#include <stddef.h>

#include "protocol.h"

int kyb_connect(const char *path, int timeout_seconds);
bool kyb_send(int socket, struct kyb_message *message, const struct kyb_extent *records, const int *fds);
/* One packet; fds must hold KYB_RECORDS_MAX, those received are owned by the caller. false: hung up, timed out or
 * malformed. */
bool kyb_receive(int socket, struct kyb_message *message, struct kyb_extent *records, int *fds, size_t *fd_count);

#endif
