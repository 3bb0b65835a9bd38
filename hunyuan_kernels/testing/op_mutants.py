"""Mutants of the ops' own kernels: the cases of an op on a simulated GPU that loads a changed PTX."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hunyuan_kernels._C import simulator
from hunyuan_kernels._ops import ops
from hunyuan_kernels.simulator import LaunchReport, simulated_gpu_of
from hunyuan_kernels.testing.mutation import Mutant, run_mutants
from hunyuan_kernels.testing.spec import Case, OpSpec

#: The settings of ``testing.simulated``, as options of ``simulator.Gpu``, and a held block.
SETTINGS: list[dict[str, Any]] = [
    {"async_latency": latency, "schedule": schedule, "check_races": True, "split_warps": True}
    for latency, schedule in ((64, "random"), (1, "hold_warps"), (20_000, "hold_copies"), (64, "hold_block"))
]


@dataclass(frozen=True)
class _CaseLaunch:
    """Runs one case with a module in the place of the stem's; a ``mutation.Launch``."""

    spec: OpSpec
    case: Case

    @cached_property
    def want(self) -> Any:
        return self.spec.reference(**self.case.make(0))

    def __call__(self, module: simulator.Module, setting: Mapping[str, Any]) -> Sequence[LaunchReport]:
        with simulated_gpu_of(setting) as gpu:
            gpu.load_instead(self.spec.stem, module)
            got = self.spec.function(**self.case.make(0))
        for comparison in self.spec.compare(self.case.make(0), got, self.want):
            if not comparison:
                raise AssertionError(f"[{self.case.label}] {comparison.message}")
        kernels = set(module.kernels())
        return [report for report in gpu.reports if report.kernel in kernels]


def mutate_op(spec: OpSpec) -> list[Mutant]:
    """Every mutant of the kernels that the cases of an op run.

    Raises:
        MissingKernelError: the op, or one that it is composed of, has no CUDA kernel.
        simulator.SimError, AssertionError: a case fails already without a change.
    """
    return run_mutants(ops.device_ptx(spec.stem), [_CaseLaunch(spec, case) for case in spec.cases()], SETTINGS)


@dataclass(frozen=True)
class Harmless:
    """Mutants that nothing catches because nothing is wrong with them."""

    kernels: str  #: a regular expression that matches the whole name
    instruction: str
    most: int  #: in one kernel
    why: str

    def explains(self, mutant: Mutant) -> bool:
        return mutant.instruction == self.instruction and re.fullmatch(self.kernels, mutant.kernel) is not None
