"""The command line ``hunyuan-kernels``: what is built, which ops there are, whether they agree with the reference."""

import difflib
import inspect
import os
import platform
import sys
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from hunyuan_kernels._ops import LIBRARY, MissingKernelError, ops
from hunyuan_kernels._version import __version__
from hunyuan_kernels.cli.counters import counter_rows, markdown
from hunyuan_kernels.cli.simulate import check_on_simulated_gpu
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets
from hunyuan_kernels.testing.spec import OpSpec, all_specs, verify

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
#: A terminal's width where there is one; wide enough for whole lines in a file.
console = Console(width=None if sys.stdout.isatty() else 160)


@app.command()
def doctor() -> None:
    """Versions, instruction sets and backend; exits with 1 when the parts do not fit together."""
    table = Table("what", "found", title="hunyuan_kernels")
    problems = []
    table.add_row("package", f"{__version__} ({LIBRARY})")
    table.add_row("python", platform.python_version())
    try:
        from hunyuan_kernels._C import build_information

        built = build_information()
    except ImportError as error:
        built = {}
        problems.append(f"_C does not load, so the build is unknown: {error}")
    table.add_row("torch", f"{torch.__version__}, built with the headers of {built.get('torch', 'unknown')}")
    table.add_row("compiler", f"{built.get('compiler', 'unknown')} for {built.get('processor', 'unknown')}")
    if built and built["version"] != __version__:
        problems.append(f"_C is of version {built['version']}, the package of {__version__}: build again (./dev setup)")
    cuda = "in this build" if built.get("cuda") else "not in this build (no nvcc when it was built)"
    table.add_row("device code", cuda)
    table.add_row("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch sees")
    forced = os.environ.get("HUNYUAN_KERNELS_ISA")
    reason = "HUNYUAN_KERNELS_ISA" if forced else "the best that this CPU has"
    table.add_row(
        "instruction set", f"{ops.instruction_set()} ({reason}); runs: {', '.join(supported_instruction_sets())}"
    )
    table.add_row("threads", str(torch.get_num_threads()))
    console.print(table)
    for problem in problems:
        console.print(f"[red]problem:[/red] {problem}")
    if problems:
        raise typer.Exit(1)


@app.command("list")
def list_ops() -> None:
    """The ops that `check` knows, with their first line of documentation."""
    table = Table("op", "stem", "what it does")
    for spec in all_specs():
        documentation = inspect.getdoc(spec.function) or ""
        table.add_row(spec.name, spec.stem, documentation.splitlines()[0] if documentation else "")
    console.print(table)


def _chosen(names: list[str]) -> list[OpSpec]:
    specs = {spec.name: spec for spec in all_specs()}
    for name in names:
        if name not in specs:
            near = difflib.get_close_matches(name, specs, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            print(f"hunyuan-kernels: unknown op '{name}'; allowed: {', '.join(specs)}.{hint}", file=sys.stderr)
            raise typer.Exit(2)
    return [specs[name] for name in names] if names else list(specs.values())


@app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(metavar="[OP]...", help="Ops; all when none is given.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Inputs of each case (and schedules, with --simulate).")] = 1,
    simulate: Annotated[bool, typer.Option("--simulate", help="The CUDA kernels, on a simulated GPU.")] = False,
) -> None:
    """Compares ops with their PyTorch reference on every instruction set of this CPU; exits with 1 on a difference."""
    if simulate:
        raise typer.Exit(check_on_simulated_gpu(_chosen(names or []), seeds, console))
    table = Table("op", "instruction set", "cases", "largest error, of the bound", "result")
    failures = []
    for spec in _chosen(names or []):
        for isa in supported_instruction_sets():
            worst, count, failed = 0.0, 0, 0
            for case in spec.cases():
                for seed in range(seeds):
                    with instruction_set(isa):
                        comparisons = verify(spec, case, seed)
                    count += 1
                    worst = max([worst, *(c.max_ratio for c in comparisons)])
                    wrong = [c.message for c in comparisons if not c]
                    failed += bool(wrong)
                    failures += [f"{spec.name} [{case.label}] seed {seed} on {isa}: {message}" for message in wrong]
            table.add_row(spec.name, isa, str(count), f"{worst:.2f}", f"{failed} failed" if failed else "ok")
    console.print(table)
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures:
        raise typer.Exit(1)


@app.command()
def counters(name: Annotated[str, typer.Argument(metavar="OP")]) -> None:
    """Counts what the CUDA kernels of an op do at a benchmark's size, on a simulated GPU: a Markdown table."""
    try:
        print(markdown(counter_rows(_chosen([name])[0])))
    except MissingKernelError as error:
        print(f"hunyuan-kernels: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
