"""CUDA graphs, captured once and replayed in every step; their memory lies in torch's private pools."""

import torch
from program import INCREMENT, MULTIPLIER, Loop, Sequence, mismatch, signed
from torch_common import DEVICE, MIB, require_cuda, synchronize, working_set_mib

STEPS_IN_GRAPH = 4
loop = Loop()
require_cuda()
words = working_set_mib(512) * MIB // 4 // 2


class Replayed:
    """One graph: STEPS_IN_GRAPH steps of a sequence in place, then a scaled copy into a second array."""

    def __init__(self, seed: int) -> None:
        self.sequence = Sequence.begin(seed)
        self.state = self.formula(1)
        self.scaled = torch.zeros_like(self.state)
        if DEVICE != "cuda":
            self.graph = None
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.work()
        torch.cuda.current_stream().wait_stream(side)
        self.state.copy_(self.formula(1))
        synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.work()

    def formula(self, factor: int) -> torch.Tensor:
        fresh = torch.arange(words, dtype=torch.int32, device=DEVICE)
        fresh.mul_(signed(self.sequence.slope)).add_(signed(self.sequence.intercept))
        return fresh.mul_(factor)

    def work(self) -> None:
        for _ in range(STEPS_IN_GRAPH):
            self.state.mul_(MULTIPLIER).add_(INCREMENT)
        self.scaled.copy_(self.state * 3)

    def replay(self) -> None:
        if self.graph is None:
            self.work()
        else:
            self.graph.replay()
        for _ in range(STEPS_IN_GRAPH):
            self.sequence.advance()

    def check(self, where: str) -> None:
        total = int(self.state.sum(dtype=torch.int64).item()) & 0xFFFFFFFF
        if total != self.sequence.total(words):
            mismatch(f"{where}: sum is {total:#x}, expected {self.sequence.total(words):#x}")
        if not torch.equal(self.state, self.formula(1)):
            mismatch(f"{where}: state differs")
        if not torch.equal(self.scaled, self.formula(3)):
            mismatch(f"{where}: copy made inside the graph differs")


graphs = [Replayed(1), Replayed(2)]
for step in loop:
    for graph in graphs:
        for _ in range(3):
            graph.replay()
        graph.check(f"step {step}")
loop.finish()
