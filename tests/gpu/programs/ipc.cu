// Two processes, one of which has the other's memory open through legacy CUDA IPC: a pause must be refused.
#include "program.cuh"

#include <sys/prctl.h>
#include <sys/wait.h>

int main(void)
{
    int to_parent[2], to_child[2];
    char word = 0;
    long step = 0;

    begin_program();
    if (pipe(to_parent) || pipe(to_child)) {
        printf("setup: no pipe\n");
        return 3;
    }
    // Forked before CUDA is used: a context doesn't survive a fork.
    pid_t child = fork();
    if (child == 0) {
        cudaIpcMemHandle_t handle;
        uint32_t *words;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        // Under 2 MiB, so that it is the driver's own memory and not an extent, which can't be shared this way.
        CHECK(cudaMalloc((void **)&words, (size_t)1 << 20));
        fill_words<<<64, 256>>>(words, ((size_t)1 << 20) / 4, 3u, 5u);
        CHECK(cudaDeviceSynchronize());
        CHECK(cudaIpcGetMemHandle(&handle, words));
        if (write(to_parent[1], &handle, sizeof handle) != (ssize_t)sizeof handle)
            _exit(1);
        while (read(to_child[0], &word, 1) < 0 && !stopped)
            ;
        _exit(0);
    }
    cudaIpcMemHandle_t handle;
    size_t have = 0;
    while (have < sizeof handle) {
        ssize_t got = read(to_parent[0], (char *)&handle + have, sizeof handle - have);
        if (got <= 0) {
            printf("setup: the child exported no memory\n");
            return 3;
        }
        have += (size_t)got;
    }
    struct array own = make_array((size_t)512 << 20, 1);
    struct array theirs = own;
    CHECK(cudaIpcOpenMemHandle((void **)&theirs.words, handle, cudaIpcMemLazyEnablePeerAccess));
    theirs.count = ((size_t)1 << 20) / 4;
    theirs.slope = 3u;
    theirs.intercept = 5u;
    for (; !stopped; step++) {
        advance_array(&own, 0);
        check_array(&own, 0, "own memory", step);
        check_array(&theirs, 0, "the other process's memory", step);
        report(step);
    }
    CHECK(cudaIpcCloseMemHandle(theirs.words));
    if (write(to_child[1], &word, 1) != 1)
        return 1;
    waitpid(child, NULL, 0);
    finish(step);
    return 0;
}
