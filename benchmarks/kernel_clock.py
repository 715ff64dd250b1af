"""How a call of a kernel is timed on a GPU, its memory counted, and what the card reaches."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from kernel_rows import Ceilings

from kdcompile.kernels import _runtime

QUANTILES = (0.2, 0.5, 0.8)
Run = Callable[[], Any]


class Gpu:
    """The clock and the memory counter; the dry run and the tests put their own in its place."""

    device = "cuda"

    def name(self) -> str:
        """Of the card."""
        return torch.cuda.get_device_name()

    def quantiles_ms(self, run: Run) -> Sequence[float]:
        """p20, p50 and p80 of a call."""
        found: Sequence[float] = _runtime.triton.testing.do_bench(run, quantiles=QUANTILES)
        return found

    def peak_mb(self, run: Run) -> float:
        """What one call allocates at its worst beyond what was there."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def replay(self, run: Run) -> Run:
        """The call captured as a CUDA graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def ceilings(self) -> Ceilings:
        """A 1 GiB device copy, bytes read and written, and large dense products."""
        pair = torch.empty(2, 2**30, dtype=torch.uint8, device="cuda").random_()
        rate = 2e3 * pair[0].numel() / self.quantiles_ms(lambda: pair[1].copy_(pair[0]))[1]
        flops = {}
        for name in ("float16", "bfloat16", "tf32"):
            dtype = torch.float32 if name == "tf32" else getattr(torch, name)
            a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
            with precision("high"):
                median = self.quantiles_ms(lambda a=a, b=b: a @ b)[1]
            flops[name] = 2e3 * 8192**3 / median
        return Ceilings(rate, flops)


@contextmanager
def precision(name: str) -> Iterator[None]:
    """float32 products in full ("highest") or in TF32 ("high"), in cuDNN too."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name == "high"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
