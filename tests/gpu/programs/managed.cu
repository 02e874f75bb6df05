// Managed memory (64 MiB) beside ordinary memory: a pause must be refused before anything is touched.
#include "program.cuh"

int main(void)
{
    long step = 0;
    uint32_t *managed;
    const size_t words = (size_t)16 << 20;

    begin_program();
    struct array ordinary = make_array((size_t)512 << 20, 1);
    CHECK(cudaMallocManaged((void **)&managed, words * sizeof *managed, cudaMemAttachGlobal));
    struct array shared = ordinary;
    shared.words = managed;
    shared.count = words;
    fill_words<<<1024, 256>>>(shared.words, shared.count, shared.slope, shared.intercept);
    CHECK(cudaDeviceSynchronize());
    for (; !stopped; step++) {
        advance_array(&ordinary, 0);
        advance_array(&shared, 0);
        check_array(&ordinary, 0, "ordinary memory", step);
        check_array(&shared, 0, "managed memory", step);
        report(step);
    }
    finish(step);
    return 0;
}
