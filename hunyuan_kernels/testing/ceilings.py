"""What this machine reaches at best, measured in the same rounds as what is compared with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

import hunyuan_kernels as hk
from hunyuan_kernels.testing.spec import Work
from hunyuan_kernels.testing.timing import Timing

_GEMM_SIZE = 768
_LARGEST_BUFFER = 2**28


@dataclass(frozen=True)
class Probe:
    """A simple function, and the work that it does."""

    function: Callable[[], object]
    work: Work


def make_probes(work: Work, dtype: torch.dtype) -> dict[str, Probe]:
    """The probes that bound an op of this ``work``.

    Bandwidth: a sum (reads only) and a copy, over as many bytes as the op moves (64 KiB to 256 MiB): an op whose data
    fits a cache is held against that cache. Arithmetic, for ops that have any: PyTorch's fp32 product of matrices of
    768 x 768, and unless ``dtype`` is fp32 also this package's bf16 one, since only it uses every instruction set.
    """
    elements = int(min(max(work.bytes, 2**16), _LARGEST_BUFFER)) // 4
    source, target = torch.ones(elements), torch.empty(elements // 2)
    probes = {
        "read": Probe(source.sum, Work(0.0, 4.0 * elements)),
        "copy": Probe(lambda: target.copy_(source[: elements // 2]), Work(0.0, 8.0 * (elements // 2))),
    }
    if work.flops:
        flops = 2.0 * _GEMM_SIZE**3
        matrix = torch.randn(_GEMM_SIZE, _GEMM_SIZE)
        probes["fp32 product"] = Probe(lambda: matrix @ matrix, Work(flops, 0.0))
        if dtype != torch.float32:
            a, one = matrix.bfloat16(), torch.tensor([0, _GEMM_SIZE], dtype=torch.int32)
            probes["bf16 product"] = Probe(lambda: hk.grouped_gemm(a, a[None], one), Work(flops, 0.0))
    return probes


@dataclass(frozen=True)
class Ceiling:
    """The best rate that any call of a probe reached, 0 where none was needed."""

    flops_per_second: float
    bytes_per_second: float

    def share(self, work: Work, seconds: float) -> float:
        """The least time that ``work`` could take at these rates, as a share of ``seconds``."""
        arithmetic = work.flops / self.flops_per_second if self.flops_per_second else 0.0
        return max(arithmetic, work.bytes / self.bytes_per_second) / seconds


def ceiling_of(probes: Mapping[str, Probe], timings: Mapping[str, Timing]) -> Ceiling:
    """From the probes and the timings of their names."""
    return Ceiling(
        max(probe.work.flops / timings[name].best for name, probe in probes.items()),
        max(probe.work.bytes / timings[name].best for name, probe in probes.items()),
    )
