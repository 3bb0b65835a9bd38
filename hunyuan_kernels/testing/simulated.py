"""Ops on the simulated GPU: what "simulated" means in every test, and what kernels move over what shapes demand."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from hunyuan_kernels._ops import MissingKernelError
from hunyuan_kernels.simulator import simulated_gpu
from hunyuan_kernels.testing.spec import OpSpec, Work

#: Asynchronous work completes at once, after a while, or so late that whatever does not wait for it has gone on; parts
#: of the machine stand still for whole phases; races are checked and the lanes of warps run apart. Keyword arguments of
#: :func:`hunyuan_kernels.simulated_gpu`.
SETTINGS: dict[str, dict[str, Any]] = {
    name: {"latency": latency, "schedule": schedule, "check_races": True, "split_warps": True}
    for name, latency, schedule in (
        ("latency 1, warps held", 1, "hold_warps"),
        ("latency 64", 64, "random"),
        ("latency 20000, copies held", 20_000, "hold_copies"),
    )
}


class Counted(Protocol):
    """A report of the simulator."""

    @property
    def counters(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Traffic:
    """Bytes of global memory; adds up over calls."""

    read: float = 0.0
    written: float = 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.read + other.read, self.written + other.written)

    def over(self, demanded: "Traffic") -> "Traffic":
        """How often each demanded byte was moved: 1 is once."""
        return Traffic(_ratio(self.read, demanded.read), _ratio(self.written, demanded.written))


def _ratio(moved: float, demanded: float) -> float:
    if demanded == 0:
        return 1.0 if moved == 0 else float("inf")
    return moved / demanded


def moved_bytes(reports: Iterable[Counted]) -> Traffic:
    """What the launches read and wrote in all: loads (cp.async among them) and stores of threads, TMA."""
    total = Traffic()
    for report in reports:
        c = report.counters
        total += Traffic(
            c["global_load_bytes"] + c["tma_load_bytes"],
            c["global_store_bytes"] + c["tma_store_bytes"],
        )
    return total


def demanded_bytes(work: Work, outputs: Iterable[Tensor]) -> Traffic:
    """What the shapes demand: each output written once, the rest of ``work.bytes`` read once."""
    written = float(sum(output.numel() * output.element_size() for output in outputs))
    return Traffic(work.bytes - written, written)


@dataclass
class SimulatedCheck:
    """Outcome of one op under one setting."""

    cases: int = 0
    worst: float = 0.0  #: largest error, of the bound
    failures: list[str] = field(default_factory=list)
    moved: Traffic = Traffic()
    demanded: Traffic = Traffic()


def check_simulated(spec: OpSpec, setting: str, seeds: int, **options: Any) -> SimulatedCheck:
    """Compares each case that the CUDA kernels of an op take with the reference; a seed is one of inputs and schedule,
    ``options`` are further ones of :func:`hunyuan_kernels.simulated_gpu`.

    Raises:
        MissingKernelError: the op, or one that it is composed of, has no CUDA kernel, or none for any of its cases.
    """
    outcome = SimulatedCheck()
    for case in spec.cases():
        for seed in range(seeds):
            arguments = case.make(seed)
            if not spec.on_cuda(arguments):
                continue
            label = f"{spec.name} [{case.label}] seed {seed} simulated, {setting}"
            outcome.cases += 1
            try:
                own = case.make(seed)  # the op may change them
                with simulated_gpu(seed=seed, **SETTINGS[setting], **options) as gpu:
                    got = spec.function(**own)
            except MissingKernelError:
                raise
            except RuntimeError as error:
                outcome.failures.append(f"{label}: {error}")
                continue
            comparisons = spec.compare(arguments, got, spec.reference(**arguments))
            outcome.worst = max([outcome.worst, *(c.max_ratio for c in comparisons)])
            outcome.failures += [f"{label}: {c.message}" for c in comparisons if not c]
            outcome.moved += moved_bytes(gpu.reports)
            outcome.demanded += demanded_bytes(spec.work(arguments), got if isinstance(got, tuple) else (got,))
    if not outcome.cases:
        raise MissingKernelError(f"{spec.name}: the CUDA kernels take none of its cases")
    return outcome
