"""The command line ``hunyuan-kernels``: what is built, which ops there are, whether they are right, how fast."""

import inspect
import os
import platform

import torch
import typer
from rich.markup import escape
from rich.table import Table

import hunyuan_kernels
from hunyuan_kernels._ops import LIBRARY, ops
from hunyuan_kernels._version import __version__
from hunyuan_kernels.cli.bench import bench
from hunyuan_kernels.cli.check import check
from hunyuan_kernels.cli.common import console
from hunyuan_kernels.cli.counters import counters
from hunyuan_kernels.cli.demo import demo
from hunyuan_kernels.cli.plot import plot
from hunyuan_kernels.testing.instruction_set import supported_instruction_sets
from hunyuan_kernels.testing.spec import all_specs

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


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
    """The ops that `check` and `bench` know, with their first line of documentation."""
    table = Table("op", "stem", "what it does")
    for spec in all_specs():
        # A spec may call its op through a function of its own; the op's page is the public one.
        documentation = inspect.getdoc(getattr(hunyuan_kernels, spec.name, spec.function)) or ""
        table.add_row(spec.name, spec.stem, escape(documentation.partition("\n")[0]))
    console.print(table)


app.command()(demo)
app.command()(check)
app.command()(bench)
app.command()(counters)
app.add_typer(plot, name="plot")
