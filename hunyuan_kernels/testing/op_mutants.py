"""Mutants of the ops' own kernels: the cases of an op on a simulated GPU that loads a changed PTX."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hunyuan_kernels._C import simulator
from hunyuan_kernels._ops import ops
from hunyuan_kernels.simulator import LaunchReport, simulated_gpu_of
from hunyuan_kernels.testing.mutation import Mutant, Progress, mutations, run_mutants
from hunyuan_kernels.testing.spec import Case, OpSpec

#: The settings of ``testing.simulated``, as options of ``simulator.Gpu``, and a held block.
SETTINGS: list[dict[str, Any]] = [
    {"async_latency": latency, "schedule": schedule, "check_races": True, "split_warps": True}
    for latency, schedule in ((64, "random"), (1, "hold_warps"), (20_000, "hold_copies"), (64, "hold_block"))
]


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
        arguments = self.case.make(0)
        with simulated_gpu_of(setting) as gpu:
            gpu.load_instead(self.stem, module)
            got = self.spec.function(**arguments)
        for comparison in self.spec.compare(arguments, got, self.want):
            if not comparison:
                raise AssertionError(f"[{self.case.label}] {comparison.message}")
        kernels = set(module.kernels())
        return [report for report in gpu.reports if report.kernel in kernels]


@dataclass(frozen=True)
class _Executed:
    """What a case runs without a change."""

    case: Case
    lines: dict[str, set[int]]  #: of each kernel
    instructions: int


def _execute(spec: OpSpec, case: Case) -> _Executed:
    arguments = case.make(0)
    with simulated_gpu_of({}) as gpu:
        spec.function(**arguments)
    lines: dict[str, set[int]] = {}
    for report in gpu.reports:
        lines.setdefault(report.kernel, set()).update(report.by_line)
    return _Executed(case, lines, sum(report.warp_instructions for report in gpu.reports))


def _fewest(executed: Iterable[_Executed], kernel: str, lines: set[int]) -> list[Case]:
    """Cases that together execute these lines of a kernel: the smallest that executes all, or else again and again the
    one that executes the most of what is left."""
    by_size = sorted(executed, key=lambda each: each.instructions)
    chosen = []
    while lines:
        best = max(by_size, key=lambda each: len(lines & each.lines.get(kernel, set())))  # the first of the best
        chosen.append(best.case)
        lines = lines - best.lines[kernel]
    return chosen


def mutate_op(
    spec: OpSpec,
    *,
    seeds: int = 1,
    few_cases: bool = False,
    kernels: Iterable[str] | None = None,
    progress: Progress = iter,
) -> list[Mutant]:
    """Every mutant of the kernels that the cases of an op run.

    Args:
        spec: of an op
        seeds: schedules of each setting
        few_cases: for each kernel only the smallest case that executes all its instructions which are mutated
        kernels: only these; None takes all
        progress: goes over the mutations of a stem

    Raises:
        MissingKernelError: the op, or one that it is composed of, has no CUDA kernel.
        simulator.SimError, AssertionError: a case fails already without a change.
    """
    settings = [{**setting, "seed": seed} for seed in range(seeds) for setting in SETTINGS]
    executed = [_execute(spec, case) for case in spec.cases()]
    launched = {kernel for each in executed for kernel in each.lines}
    chosen = launched if kernels is None else launched & set(kernels)
    mutants = []
    for stem in ops.device_stems().split(","):
        ptx = ops.device_ptx(stem)
        of_stem = chosen & set(simulator.Module(ptx).kernels())
        lines = {m.line: m.kernel for m in mutations(ptx) if m.kernel in of_stem}
        cases = [each.case for each in executed if of_stem & each.lines.keys()]
        if few_cases:
            every = set().union(*(lines_of for each in executed for lines_of in each.lines.values()))
            needed = {
                case.label: case
                for kernel in of_stem
                for case in _fewest(executed, kernel, {line for line in lines.keys() & every if lines[line] == kernel})
            }
            cases = list(needed.values())
        launches = [_CaseLaunch(spec, case, stem) for case in cases]
        mutants += run_mutants(ptx, launches, settings, kernels=of_stem, progress=progress)
    return mutants
