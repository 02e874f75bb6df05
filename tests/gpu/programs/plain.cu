// A plain CUDA program with the static runtime: eight arrays, and an allocation made and freed in every step.
#include "program.cuh"

int main(void)
{
    enum { COUNT = 8 };
    struct array arrays[COUNT];
    long step = 0;

    begin_program();
    for (int i = 0; i < COUNT; i++)
        arrays[i] = make_array((size_t)128 << 20, (uint32_t)i);
    for (; !stopped; step++) {
        struct array *current = &arrays[step % COUNT];
        advance_array(current, 0);
        check_array(current, 0, "the array stepped", step);
        check_array(&arrays[(step * 5 + 3) % COUNT], 0, "an untouched array", step);
        struct array temporary = make_array((size_t)(1 + step % 37) << 20, (uint32_t)step);
        check_array(&temporary, 0, "a temporary array", step);
        CHECK(cudaFree(temporary.words));
        CHECK(cudaFree(temporary.wrong));
        report(step);
    }
    for (int i = 0; i < COUNT; i++)
        check_array(&arrays[i], 0, "an array at the end", step);
    finish(step);
    return 0;
}
