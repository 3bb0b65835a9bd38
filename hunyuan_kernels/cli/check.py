"""``hunyuan-kernels check``: the ops against their references."""

import sys
from typing import Annotated

import typer
from rich.table import Table

from hunyuan_kernels.cli.common import chosen_specs, console
from hunyuan_kernels.cli.simulate import check_on_simulated_gpu
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets
from hunyuan_kernels.testing.spec import OpSpec, verify


def check_op(spec: OpSpec, seeds: int = 1) -> tuple[int, float, list[str]]:
    """All cases of an op: their number, the largest error as a share of the bound, and what failed."""
    count, worst, failures = 0, 0.0, []
    for case in spec.cases():
        for seed in range(seeds):
            count += 1
            comparisons = verify(spec, case, seed)
            worst = max([worst, *(c.max_ratio for c in comparisons)])
            failures += [f"[{case.label}] seed {seed}: {c.message}" for c in comparisons if not c]
    return count, worst, failures


def check(
    names: Annotated[list[str] | None, typer.Argument(metavar="[OP]...", help="Ops; all when none is given.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Inputs of each case (and schedules, with --simulate).")] = 1,
    simulate: Annotated[bool, typer.Option("--simulate", help="The CUDA kernels, on a simulated GPU.")] = False,
    mutate: Annotated[
        bool,
        typer.Option(
            "--mutate", help="With --simulate: remove one synchronization of a kernel at a time; who notices?"
        ),
    ] = False,
) -> None:
    """Compares ops with their PyTorch reference on every instruction set of this CPU; exits with 1 on a difference."""
    if mutate and not simulate:
        print("hunyuan-kernels: --mutate: kernels are mutated on a simulated GPU; add --simulate", file=sys.stderr)
        raise typer.Exit(2)
    if mutate:
        from hunyuan_kernels.cli.mutate import mutate_on_simulated_gpu  # needs _C; other commands do not

        raise typer.Exit(mutate_on_simulated_gpu(chosen_specs(names), seeds, bool(names), console))
    if simulate:
        raise typer.Exit(check_on_simulated_gpu(chosen_specs(names), seeds, bool(names), console))
    table = Table("op", "instruction set", "cases", "largest error, of the bound", "result")
    failures = []
    for spec in chosen_specs(names):
        for isa in supported_instruction_sets():
            with instruction_set(isa):
                count, worst, wrong = check_op(spec, seeds)
            table.add_row(spec.name, isa, str(count), f"{worst:.2f}", f"{len(wrong)} failed" if wrong else "ok")
            failures += [f"{spec.name} on {isa} {failure}" for failure in wrong]
    console.print(table)
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures:
        raise typer.Exit(1)
