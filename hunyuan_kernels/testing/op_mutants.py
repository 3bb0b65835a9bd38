"""Mutants of the ops' own kernels: the cases of an op on a simulated GPU that loads a changed PTX."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from hunyuan_kernels._C import simulator
from hunyuan_kernels._ops import ops
from hunyuan_kernels.simulator import LaunchReport, device_ptx, simulated_gpu_of
from hunyuan_kernels.testing.mutation import Mutant, Progress, run_mutants
from hunyuan_kernels.testing.spec import Case, OpSpec

#: The settings of ``testing.simulated``, as options of ``simulator.Gpu``, and a held block.
SETTINGS: list[dict[str, Any]] = [
    {"async_latency": latency, "schedule": schedule, "check_races": True, "split_warps": True}
    for latency, schedule in ((64, "random"), (1, "hold_warps"), (20_000, "hold_copies"), (64, "hold_block"))
]


@contextmanager
def fresh_memory_is_nan() -> Iterator[None]:
    """Elements that a mutant does not write differ from the right ones, which the run before may have left there."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    ops.fill_new_memory(True)
    try:
        yield
    finally:
        ops.fill_new_memory(False)
        torch.use_deterministic_algorithms(before)


@dataclass(frozen=True)
class _CaseLaunch:
    """Runs one case with a module in the place of a stem's; a ``mutation.Launch``."""

    spec: OpSpec
    case: Case
    stem: str

    @cached_property
    def want(self) -> Any:
        return self.spec.reference(**self.case.make(0))

    def __call__(self, module: simulator.Module, setting: Mapping[str, Any]) -> Sequence[LaunchReport]:
        own = self.case.make(0)  # the op may change them
        with simulated_gpu_of({"num_sms": self.case.sms, **setting}) as gpu, fresh_memory_is_nan(), self.case.within():
            gpu.load_instead(self.stem, module)
            got = self.spec.function(**own)
        for comparison in self.spec.compare(self.case.make(0), got, self.want):
            if not comparison:
                raise AssertionError(f"[{self.case.label}] {comparison.message}")
        kernels = set(module.kernels())
        return [report for report in gpu.reports if report.kernel in kernels]


def mutated_stems(spec: OpSpec) -> list[str]:
    """The stems of device code that are an op's own: not those of ops that it is composed of."""
    return [stem for stem in ops.device_stems().split(",") if f"{stem}_".startswith(f"{spec.stem}_")]


def executed_lines(spec: OpSpec, cases: Sequence[Case]) -> dict[str, set[int]]:
    """The kernels that some cases of an op launch, and the lines of their PTX that they execute.

    Raises:
        MissingKernelError: the op, or one that it is composed of, has no CUDA kernel.
        simulator.SimError: something is found wrong with a launch.
    """
    lines: dict[str, set[int]] = {}
    for case in cases:
        arguments = case.make(0)
        with simulated_gpu_of({"num_sms": case.sms}) as gpu, case.within():
            spec.function(**arguments)
        for report in gpu.reports:
            lines.setdefault(report.kernel, set()).update(report.by_line)
    return lines


def mutate_op(
    spec: OpSpec, cases: Sequence[Case], settings: Sequence[Mapping[str, Any]] = SETTINGS, *, progress: Progress = iter
) -> list[Mutant]:
    """Every mutant of an op's own kernels that its cases run; none of an op that is composed of other ops.

    Args:
        spec: of the op
        cases: of the op, as ``mutation_cases`` gives them
        settings: options of ``simulator.Gpu``, tried in this order
        progress: goes over the mutations of a stem's kernels

    Raises:
        MissingKernelError: the op, or one that it is composed of, has no CUDA kernel.
        simulator.SimError, AssertionError: a case fails already without a change.
    """
    stems = mutated_stems(spec)
    kernels = executed_lines(spec, cases if stems else cases[:1])
    mutants = []
    for stem in stems:
        ptx = device_ptx(stem)
        if kernels.keys() & set(simulator.Module(ptx).kernels()):
            mutants += run_mutants(ptx, [_CaseLaunch(spec, case, stem) for case in cases], settings, progress=progress)
    return mutants
