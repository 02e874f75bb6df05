/* Packets: sequenced, addressed by path, with descriptors beside the records. Used towards the agent and on the
 * control socket. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "packets.h"

int kyb_connect(const char *path, int timeout_seconds)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) return -1;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (timeout_seconds) {
        struct timeval limit = {.tv_sec = timeout_seconds};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    }
    int result;
    do result = connect(fd, (struct sockaddr *)&address, sizeof address);
    while (result != 0 && errno == EINTR);
    if (result == 0) return fd;
    close(fd);
    return -1;
}

bool kyb_send(int socket, struct kyb_message *message, const struct kyb_extent *records, const int *fds)
{
    message->magic = KYB_MAGIC;
    message->version = KYB_VERSION;
    union {
        char bytes[CMSG_SPACE(sizeof(int) * KYB_RECORDS_MAX)];
        struct cmsghdr align;
    } control;
    struct iovec parts[2] = {{message, sizeof *message}, {(void *)records, message->count * sizeof *records}};
    struct msghdr packet = {.msg_iov = parts, .msg_iovlen = message->count ? 2 : 1};
    size_t fd_count = 0;
    int open_fds[KYB_RECORDS_MAX];
    for (uint32_t i = 0; fds && i < message->count; i++)
        if (fds[i] >= 0) open_fds[fd_count++] = fds[i];
    if (fd_count) {
        packet.msg_control = control.bytes;
        packet.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *head = CMSG_FIRSTHDR(&packet);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(head), open_fds, sizeof(int) * fd_count);
    }
    ssize_t sent;
    do sent = sendmsg(socket, &packet, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent >= 0;
}

bool kyb_receive(int socket, struct kyb_message *message, struct kyb_extent *records, int *fds, size_t *fd_count)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * KYB_RECORDS_MAX)];
        struct cmsghdr align;
    } control;
    struct iovec parts[2] = {{message, sizeof *message}, {records, KYB_RECORDS_MAX * sizeof *records}};
    struct msghdr packet = {
        .msg_iov = parts, .msg_iovlen = 2, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t received;
    do received = recvmsg(socket, &packet, MSG_CMSG_CLOEXEC);
    while (received < 0 && errno == EINTR);
    *fd_count = 0;
    if (received <= 0) return false;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&packet); head; head = CMSG_NXTHDR(&packet, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(head) + i * sizeof fd, sizeof fd);
            if (*fd_count < KYB_RECORDS_MAX)
                fds[(*fd_count)++] = fd;
            else
                close(fd);
        }
    }
    bool good = (size_t)received >= sizeof *message && message->magic == KYB_MAGIC && message->version == KYB_VERSION &&
                message->count <= KYB_RECORDS_MAX &&
                (size_t)received == sizeof *message + message->count * sizeof *records &&
                !(packet.msg_flags & (MSG_TRUNC | MSG_CTRUNC));
    if (good) {
        message->reason[KYB_REASON_MAX - 1] = 0;
        return true;
    }
    while (*fd_count > 0) close(fds[--*fd_count]);
    return false;
}
