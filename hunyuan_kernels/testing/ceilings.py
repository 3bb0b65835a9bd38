"""What this machine reaches at best, measured in the same rounds as what is compared with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from hunyuan_kernels._ops import ops
from hunyuan_kernels.testing.spec import Work
from hunyuan_kernels.testing.timing import Timing

_GRANULE, _SMALLEST_BUFFER, _LARGEST_BUFFER = 2**10, 2**16, 2**28
_FLOPS = 2**29


@dataclass(frozen=True)
class Probe:
    """A simple function, and the work that it does."""

    function: Callable[[], object]
    work: Work


def make_probes(work: Work, dtype: torch.dtype) -> dict[str, Probe]:
    """The probes that bound an op of this ``work`` in ``dtype`` on the instruction set in use.

    Bandwidth, over as many bytes as the op moves (64 KiB to 256 MiB), so that an op whose data fits a cache is held
    against that cache: reads alone; for an op without arithmetic, which writes about as much as it reads, also copies,
    ours past the caches and PyTorch's. Arithmetic, for ops that have any: multiply-adds on registers alone, fp32 and
    unless ``dtype`` is fp32 also dot products of bf16 pairs where this CPU has them.
    """
    size = int(min(max(work.bytes, _SMALLEST_BUFFER), _LARGEST_BUFFER)) // _GRANULE * _GRANULE
    source = torch.ones(size, dtype=torch.uint8)
    probes = {"read": Probe(lambda: ops.ceiling_read(source), Work(0.0, size))}
    if not work.flops:
        half = size // 2 // _GRANULE * _GRANULE
        target = torch.empty(half, dtype=torch.uint8)
        copied = Work(0.0, 2 * half)
        probes["copy past the caches"] = Probe(lambda: ops.ceiling_copy(source[:half], target), copied)
        probes["copy"] = Probe(lambda: target.copy_(source[:half]), copied)
        return probes
    for element in (torch.float32,) if dtype == torch.float32 else (torch.float32, torch.bfloat16):
        if flops := ops.ceiling_multiply(element, _FLOPS):
            multiply = partial(ops.ceiling_multiply, element, _FLOPS)
            name = str(element).removeprefix("torch.")
            probes[f"{name} multiply-adds"] = Probe(multiply, Work(flops, 0.0))
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
