"""``check --simulate [--mutate]``: the CUDA kernels of the ops, and their mutants, on a simulated GPU."""

import sys
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from hunyuan_kernels._ops import MissingKernelError, ops
from hunyuan_kernels.testing.harmless import Verdict, judge
from hunyuan_kernels.testing.mutation import Mutant
from hunyuan_kernels.testing.op_mutants import SETTINGS as SETTINGS_OF_MUTANTS
from hunyuan_kernels.testing.op_mutants import mutate_op
from hunyuan_kernels.testing.simulated import SETTINGS, check_simulated
from hunyuan_kernels.testing.spec import OpSpec


def _has_device_code() -> bool:
    if not ops.device_stems():
        print(
            "hunyuan-kernels: this build has no device code to simulate: no nvcc was found when it was made. Install "
            "the CUDA toolkit (or pip's nvidia-cuda-nvcc) and build again.",
            file=sys.stderr,
        )
    return bool(ops.device_stems())


def _not_simulated(error: MissingKernelError) -> str:
    return f"not simulated: {str(error).split(':')[0]} has no CUDA kernel"


def check_on_simulated_gpu(specs: list[OpSpec], seeds: int, console: Console) -> int:
    """Prints a row per op and setting; returns the exit code: 1 on a difference or a finding, 2 without device code."""
    if not _has_device_code():
        return 2
    table = Table(
        "op", "setting", "cases", "largest error, of the bound", "bytes read, of the demanded", "written", "result"
    )
    failures = []
    for spec in specs:
        try:
            for setting in SETTINGS:
                outcome = check_simulated(spec, setting, seeds)
                traffic = outcome.moved.over(outcome.demanded)
                failures += outcome.failures
                table.add_row(
                    spec.name,
                    setting,
                    str(outcome.cases),
                    f"{outcome.worst:.2f}",
                    f"{traffic.read:.2f}",
                    f"{traffic.written:.2f}",
                    f"{len(outcome.failures)} failed" if outcome.failures else "ok",
                )
        except MissingKernelError as error:
            table.add_row(spec.name, "", "", "", "", "", _not_simulated(error))
    console.print(table)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _outcome(mutant: Mutant, verdict: Verdict) -> str:
    if mutant.finding is not None:
        return f"finding: {mutant.finding}"
    if mutant.wrong_result is not None:
        return f"wrong result: {mutant.wrong_result}"
    if mutant in verdict.reasons:
        return f"survived, harmless: {verdict.reasons[mutant]}"
    return "SURVIVED"


def mutate_on_simulated_gpu(specs: list[OpSpec], seeds: int, named: bool, console: Console) -> int:
    """Prints a row per mutant; returns the exit code: 1 when one survives without an explanation, an explanation is
    stale or a case fails without a change, 2 without device code or when an op that was named has no CUDA kernel."""
    if not _has_device_code():
        return 2
    settings = [{**setting, "seed": seed} for seed in range(seeds) for setting in SETTINGS_OF_MUTANTS]
    failures = []
    for spec in specs:
        steps = partial(track, description=spec.name, console=console, disable=not console.is_terminal, transient=True)
        try:
            mutants = mutate_op(spec, settings, progress=steps)
        except MissingKernelError as error:
            if named:
                print(f"hunyuan-kernels: --mutate: {error}", file=sys.stderr)
                return 2
            console.print(f"{spec.name}: {_not_simulated(error)}")
            continue
        except (RuntimeError, AssertionError) as error:
            failures.append(f"{spec.name}: a case fails without any mutation: {error}")
            continue
        verdict = judge(mutants)
        table = Table("kernel", "PTX line", "instruction", "caught by")
        for mutant in mutants:
            changed = f" -> {mutant.replacement}" if mutant.replacement else ""
            table.add_row(
                mutant.kernel, str(mutant.line), escape(mutant.instruction + changed), escape(_outcome(mutant, verdict))
            )
        console.print(table)
        caught = sum(mutant.caught for mutant in mutants)
        console.print(
            f"{spec.name}: {len(mutants)} mutants, {caught} caught, {len(verdict.reasons)} harmless, "
            f"{len(verdict.unexplained)} survived without an explanation"
        )
        failures += [
            f"{spec.name}: {m.kernel}, PTX line {m.line}: nothing catches the mutant of {m.instruction}"
            for m in verdict.unexplained
        ]
        failures += [f"{spec.name}: stale explanation in testing/harmless.py: {text}" for text in verdict.stale]
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0
