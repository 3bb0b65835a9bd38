"""``hunyuan-kernels demo``: the package's main job on real input."""

import math
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hunyuan_kernels.cli.bench import op_report
from hunyuan_kernels.cli.common import console
from hunyuan_kernels.demo.corpus import standard_library
from hunyuan_kernels.demo.experiment import Check, Results, Settings, run_experiment
from hunyuan_kernels.demo.generation import use
from hunyuan_kernels.model import Config
from hunyuan_kernels.model.train import Step


def _writable(folder: Path) -> Path:
    """The folder, made if it is missing; tried before the minutes of training, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        print(f"hunyuan-kernels: demo: cannot write to --out {folder}: {error.strerror}", file=sys.stderr)
        raise typer.Exit(2) from None
    return folder


def _experiment(settings: Settings) -> Results:
    """The experiment under a bar for each training, on a terminal; in a file a line each is enough."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[bits]:.2f} bits per byte"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def show(overflow: str, step: int, steps: int, result: Step) -> None:
            bits = result.loss / math.log(2)
            if overflow not in tasks:
                tasks[overflow] = progress.add_task(f"training, overflow: {overflow}", total=steps, bits=bits)
            progress.update(tasks[overflow], completed=step, bits=bits)
            if step == steps and not console.is_terminal:
                console.print(f"training, overflow: {overflow}: {steps} steps, {bits:.2f} bits per byte")

        return run_experiment(standard_library(), settings, show)


def _ops_agree() -> Check:
    """Every op against its reference, and timed against PyTorch; prints its own table."""
    passed = op_report()
    got = "no difference" if passed else "differences"
    return Check("ops agree with their references", got, "no difference", passed)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for demo.png and demo.json.")] = Path("out"),
    steps: Annotated[
        int, typer.Option(min=1, help="Of each training. Far fewer than the default do not beat the bigram model.")
    ] = Settings.steps,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of weights, batches and recycling.")] = Settings.seed,
) -> None:
    """Trains a small model twice, quantizes its experts to FP8, checks every op; exits with 1 when a check fails.

    The text is the source of Python's standard library. The trainings differ in one thing: whether tokens past an
    expert's capacity are dropped or recycled.
    """
    try:
        from hunyuan_kernels.demo import report
    except ModuleNotFoundError as error:
        print(f"hunyuan-kernels: demo: {error.name} is missing: pip install 'hunyuan-kernels[cli]'", file=sys.stderr)
        raise typer.Exit(2) from None
    _writable(out)
    settings = Settings(steps=steps, seed=seed)
    config = Config()
    console.print(
        f"Two trainings of {steps} steps of {settings.batch * settings.length} bytes: {config.num_layers} layers, "
        f"1 shared + {config.num_experts} routed experts top-{config.top_k}, capacity factor {config.capacity_factor}, "
        f"{config.num_parameters / 1e6:.2f} million parameters ({config.num_active_parameters / 1e6:.2f} active), "
        f"{torch.get_num_threads()} threads"
    )
    results = _experiment(settings)
    console.print(report.training_table(results))
    used, speeds = use(results.runs[-1].model, results.windows)
    console.print(report.speed_table(speeds))
    checks = [*results.checks, *used, _ops_agree()]
    console.print(report.check_table(checks))
    console.print(f"written: {', '.join(map(str, report.write(results, checks, out)))}")
    failed = [check for check in checks if not check.passed]
    for check in failed:
        print(f"hunyuan-kernels: demo: {check.name}: {check.got}; required: {check.required}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)
