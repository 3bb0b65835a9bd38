"""One case of one op: its time beside its baselines and the machine's ceilings, its memory, its error."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hunyuan_kernels._ops import ops
from hunyuan_kernels.testing.ceilings import Ceiling, ceiling_of, make_probes
from hunyuan_kernels.testing.memory import MemoryProbe
from hunyuan_kernels.testing.providers import without_counterpart
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work, verify
from hunyuan_kernels.testing.timing import Timing, interleave

#: A reference without a sample is run for cases up to this size.
_CHECKED_UP_TO = Work(flops=4e9, bytes=2.0**29)
_PROBE = "ceiling: "


@dataclass(frozen=True)
class Measurement:
    """Result of :meth:`Bench.measure`; seconds, bytes, flops."""

    op: str
    case: str
    dtype: str
    device: str
    instruction_set: str
    cold: bool
    work: Work
    timing: Timing
    baselines: dict[str, Timing]
    left_out: dict[str, str]  # baselines without a time, and why
    ceiling: Ceiling
    peak_memory: int | None
    max_error: float | None  # of all outputs; None when the reference would take too long
    max_error_of_bound: float | None

    @property
    def best_baseline(self) -> str | None:
        """The fastest of those that are judged by."""
        judged = [name for name in self.baselines if not name.startswith(("naive", "ours"))]
        return min(judged, key=lambda name: self.baselines[name].median, default=None)

    @property
    def speedup(self) -> float | None:
        """Time of the best baseline over that of the op."""
        name = self.best_baseline
        return None if name is None else self.baselines[name].median / self.timing.median

    @property
    def share_of_ceiling(self) -> float:
        return self.ceiling.share(self.work, self.timing.median)

    def to_json(self) -> dict[str, Any]:
        """Plain values; timings as median, p20, p80 and the number of samples."""

        def plain(timing: Timing) -> dict[str, float | int]:
            return {
                "median_s": timing.median,
                "p20_s": timing.p20,
                "p80_s": timing.p80,
                "samples": len(timing.samples),
            }

        return {
            "op": self.op,
            "case": self.case,
            "dtype": self.dtype,
            "device": self.device,
            "instruction_set": self.instruction_set,
            "cache": "cold" if self.cold else "warm",
            **plain(self.timing),
            "work": asdict(self.work),
            "flops_per_second": self.work.flops / self.timing.median,
            "bytes_per_second": self.work.bytes / self.timing.median,
            "tokens_per_second": self.work.tokens / self.timing.median,
            "ceiling": asdict(self.ceiling),
            "share_of_ceiling": self.share_of_ceiling,
            "baselines": {name: plain(timing) for name, timing in self.baselines.items()},
            "left_out": self.left_out,
            "best_baseline": self.best_baseline,
            "speedup": self.speedup,
            "peak_memory_bytes": self.peak_memory,
            "max_error": self.max_error,
            "max_error_of_bound": self.max_error_of_bound,
        }


def dtype_of(arguments: Arguments) -> torch.dtype:
    """The dtype of the largest floating tensor: weights or activations, not scales."""
    values = [[*value.parameters()] if isinstance(value, nn.Module) else [value] for value in arguments.values()]
    tensors = [value for some in values for value in some if isinstance(value, Tensor) and value.is_floating_point()]
    return max(tensors, key=Tensor.numel).dtype if tensors else torch.float32


@dataclass
class Bench:
    """Settings of a run, and what it has learned about slow baselines.

    ``seconds`` for each case's rounds. A baseline is left out when its best rate in the cases before says that one call
    would take more than ``patience`` seconds. ``against`` names the providers whose functions are baselines. Without
    ``memory`` peak memory is not measured.
    """

    seconds: float = 1.0
    patience: float = 20.0
    cold: bool = False
    preset: str | None = None
    memory: MemoryProbe | None = None
    against: tuple[str, ...] = ("torch",)
    _rates: dict[tuple[str, str], float] = field(default_factory=dict)  # seconds per flop, or byte

    def measure(self, spec: OpSpec, case: Case) -> Measurement:
        """Runs one case; the op is judged by its first outputs, before any timing."""
        max_error, of_bound = self._errors(spec, case)
        probe = self.memory
        memory = None if probe is None else probe.peak_of_case(spec.name, self.preset, case.label)
        arguments = case.make(0)
        work, dtype = spec.work(arguments), dtype_of(arguments)
        candidates: dict[str, Callable[[], object]] = {spec.name: partial(spec.function, **arguments)}
        left_out = without_counterpart(self.against, spec.peers)
        compared = spec.compared_with(self.against)
        for name, baseline in compared.items():
            expected = self._rates.get((spec.name, name), 0.0) * _size(work)
            if expected <= self.patience:
                candidates[name] = _keeping_the_reason(partial(baseline, **arguments), name, left_out)
            else:
                left_out[name] = f"one call would take about {expected:.0f} s"
        probes = make_probes(work, dtype)
        functions = {_PROBE + name: probe.function for name, probe in probes.items()}
        timings = interleave({**candidates, **functions}, seconds=self.seconds, cold=self.cold)
        baselines = {name: timings[name] for name in compared if name in timings}
        for name, timing in baselines.items():
            rate = timing.best / _size(work)
            self._rates[spec.name, name] = min(rate, self._rates.get((spec.name, name), rate))
        return Measurement(
            op=spec.name,
            case=case.label,
            dtype=str(dtype).removeprefix("torch."),
            device="cpu",
            instruction_set=ops.instruction_set(),
            cold=self.cold,
            work=work,
            timing=timings[spec.name],
            baselines=baselines,
            left_out=left_out,
            ceiling=ceiling_of(probes, {name: timings[_PROBE + name] for name in probes}),
            peak_memory=memory,
            max_error=max_error,
            max_error_of_bound=of_bound,
        )

    def _errors(self, spec: OpSpec, case: Case) -> tuple[float | None, float | None]:
        if spec.sample is None:
            work = spec.work(case.make(0))
            if work.flops > _CHECKED_UP_TO.flops or work.bytes > _CHECKED_UP_TO.bytes:
                return None, None
        comparisons = verify(spec, case, sampled=True)
        return max(c.max_error for c in comparisons), max(c.max_ratio for c in comparisons)


def _size(work: Work) -> float:
    return work.flops or work.bytes


def _keeping_the_reason(function: Callable[[], object], name: str, reasons: dict[str, str]) -> Callable[[], object]:
    """``function``, which notes why it is not implemented for its arguments before it raises that."""

    def call() -> object:
        try:
            return function()
        except NotImplementedError as reason:
            reasons[name] = str(reason) or "not available for this case"
            raise

    return call
