// A stream capture that stays open while another stream works: a pause must be refused and must not break the capture.
#include "program.cuh"

int main(void)
{
    long step = 0;
    cudaStream_t captured, working;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t executable;

    begin_program();
    struct array busy = make_array((size_t)512 << 20, 1);
    struct array recorded = make_array((size_t)64 << 20, 2);
    CHECK(cudaStreamCreateWithFlags(&captured, cudaStreamNonBlocking));
    CHECK(cudaStreamCreateWithFlags(&working, cudaStreamNonBlocking));
    // One launch of each kernel before, so that no lazy loading happens inside the capture.
    advance_array(&recorded, working);
    check_array(&recorded, working, "the array to be captured", 0);
    CHECK(cudaStreamBeginCapture(captured, cudaStreamCaptureModeRelaxed));
    advance_array(&recorded, captured);
    for (; !stopped; step++) {
        advance_array(&busy, working);
        check_array(&busy, working, "the array stepped", step);
        report(step);
    }
    CHECK(cudaStreamEndCapture(captured, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
    CHECK(cudaGraphLaunch(executable, captured));
    CHECK(cudaStreamSynchronize(captured));
    check_array(&recorded, captured, "the array stepped by the captured graph", step);
    finish(step);
    return 0;
}
