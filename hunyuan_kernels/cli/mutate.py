"""``check --simulate --mutate``: which missing instructions of the CUDA kernels are noticed."""

import sys
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from hunyuan_kernels._ops import MissingKernelError
from hunyuan_kernels.cli.simulate import has_device_code, not_simulated
from hunyuan_kernels.testing.harmless import Verdict, judge
from hunyuan_kernels.testing.mutation import Mutant
from hunyuan_kernels.testing.mutation_cases import mutation_cases
from hunyuan_kernels.testing.op_mutants import SETTINGS, mutate_op, mutated_stems
from hunyuan_kernels.testing.spec import OpSpec


def _outcome(mutant: Mutant, verdict: Verdict) -> str:
    if mutant.finding is not None:
        return f"finding: {mutant.finding}"
    if mutant.wrong_result is not None:
        return f"wrong result: {mutant.wrong_result}"
    if mutant in verdict.reasons:
        return f"survived, harmless: {verdict.reasons[mutant]}"
    return "SURVIVED"


def _table(mutants: list[Mutant], verdict: Verdict) -> Table:
    table = Table("kernel", "PTX line", "instruction", "caught by")
    for mutant in mutants:
        changed = mutant.instruction + (f" -> {mutant.replacement}" if mutant.replacement else "")
        table.add_row(mutant.kernel, str(mutant.line), escape(changed), escape(_outcome(mutant, verdict)))
    return table


def mutate_on_simulated_gpu(specs: list[OpSpec], seeds: int, named: bool, console: Console) -> int:
    """Prints a row per mutant; returns the exit code: 1 when one survives without an explanation, an explanation is
    stale or a case fails without a change, 2 without device code or when an op that was named has no CUDA kernel."""
    if not has_device_code():
        return 2
    settings = [{**setting, "seed": seed} for seed in range(seeds) for setting in SETTINGS]
    failures, without_kernel = [], False
    for spec in specs:
        steps = partial(track, description=spec.name, console=console, disable=not console.is_terminal, transient=True)
        try:
            mutants = mutate_op(spec, mutation_cases(spec), settings, progress=steps)
        except MissingKernelError as error:
            if named:
                failures.append(f"hunyuan-kernels: --mutate: {error}")
                without_kernel = True
            console.print(f"{spec.name}: {not_simulated(error)}")
            continue
        except (RuntimeError, AssertionError) as error:
            failures.append(f"{spec.name}: a case fails without any mutation: {error}")
            continue
        if not mutated_stems(spec):
            console.print(f"{spec.name}: composed of other ops, whose kernels are mutated as theirs")
            continue
        verdict = judge(mutants)
        console.print(_table(mutants, verdict))
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
    return 2 if without_kernel else 1 if failures else 0
