"""``hunyuan-kernels bench``: the ops' time beside what PyTorch offers, and the report that the demo prints."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hunyuan_kernels.cli.check import check_op
from hunyuan_kernels.cli.common import chosen_specs, console, refuse
from hunyuan_kernels.cli.counters import SMS
from hunyuan_kernels.testing import machine
from hunyuan_kernels.testing.measure import Bench, Measurement
from hunyuan_kernels.testing.memory import MemoryProbe
from hunyuan_kernels.testing.product_options import OPTIONS, product_options
from hunyuan_kernels.testing.providers import PROVIDERS
from hunyuan_kernels.testing.spec import PRESETS, Case, OpSpec, all_specs
from hunyuan_kernels.testing.timing import Timing

#: The judged columns of ``bench``: name, and whether it holds numbers.
COLUMNS = (
    ("op", False),
    ("shape", False),
    ("dtype", False),
    ("device", False),
    ("isa", False),
    ("median", True),
    ("p20", True),
    ("p80", True),
    ("TFLOP/s", True),
    ("GB/s", True),
    ("% of ceiling", True),
    ("x best baseline", True),
    ("peak memory", True),
    ("max error", True),
)
#: After these, for cases of a model.
TOKENS = "tokens/s"


def duration(seconds: float) -> str:
    """Three digits with a unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def memory(size: int | None) -> str:
    """In MiB; a dash where it was not measured."""
    return "-" if size is None else f"{size / 2**20:.1f} MiB"


def _times(timing: Timing) -> list[str]:
    return [duration(timing.median), duration(timing.p20), duration(timing.p80)]


def _rows(result: Measurement) -> Iterable[list[str]]:
    work, seconds = result.work, result.timing.median
    yield [
        result.op,
        result.case,
        result.dtype,
        result.device,
        result.instruction_set,
        *_times(result.timing),
        f"{work.flops / seconds / 1e12:.3g}" if work.flops else "-",
        f"{work.bytes / seconds / 1e9:.3g}",
        f"{100 * result.share_of_ceiling:.0f}",
        "-" if result.speedup is None else f"{result.speedup:.2f}",
        memory(result.peak_memory),
        "not checked" if result.max_error is None else f"{result.max_error:.2g}",
        f"{work.tokens / seconds:.0f}" if work.tokens else "",
    ]
    for name, timing in result.baselines.items():
        factor = f"{timing.median / seconds:.2f}" + (" *" if name == result.best_baseline else "")
        tokens = f"{work.tokens / timing.median:.0f}" if work.tokens else ""
        yield [f"  {name}", "", "", "", "", *_times(timing), "", "", "", factor, "", "", tokens]
    for name, reason in result.left_out.items():
        yield [f"  {name}", reason, *[""] * (len(COLUMNS) - 1)]


def bench_table(results: list[Measurement], title: str) -> Table:
    """One row for each case and below it one for each baseline; the asterisk marks the one that counts.

    Markdown where the output is not a terminal.
    """
    caption = "x: a baseline's time over the op's; * the best baseline. Errors are absolute."
    style = box.HEAVY_HEAD if console.is_terminal else box.MARKDOWN
    table = Table(title=title, caption=caption, box=style, title_justify="left", caption_justify="left")
    columns = [*COLUMNS, (TOKENS, True)] if any(result.work.tokens for result in results) else [*COLUMNS]
    for name, numeric in columns:
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric or name == "op")
    for result in results:
        for row in _rows(result):
            table.add_row(*row[: len(columns)])
    return table


def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[OP]...", help="Ops; all when none is given.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"Sizes of a model: {', '.join(PRESETS)}.")] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Results as JSON into a file; - for standard output.")
    ] = None,
    cold: Annotated[bool, typer.Option("--cold", help="Write over the caches before each timed call.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch and of the ops.")] = None,
    case: Annotated[str | None, typer.Option(help="Only cases whose label contains this text.")] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for the rounds of each case.")] = 1.0,
    patience: Annotated[float, typer.Option(min=0.0, help="Leave out baselines whose call takes longer (s).")] = 20.0,
    against: Annotated[
        str, typer.Option(help=f"Whose functions to compare with, by commas: {', '.join(PROVIDERS)}.")
    ] = "torch",
    explain: Annotated[bool, typer.Option("--explain", help="Time nothing: show what is planned for a GPU.")] = False,
    plan: Annotated[
        list[str] | None, typer.Option(help=f"With --explain: an option of grouped GEMMs: {', '.join(OPTIONS)}.")
    ] = None,
) -> None:
    """Times ops against PyTorch and others, interleaved in one process, beside this machine's measured ceilings."""
    specs = chosen_specs(names)
    if preset is not None and preset not in PRESETS:
        refuse("preset", preset, PRESETS)
    providers = tuple(dict.fromkeys(name.strip() for name in against.split(",")))
    for provider in providers:
        if provider not in PROVIDERS:
            refuse("provider", provider, PROVIDERS)
    pairs = [(spec, c) for spec in specs for c in spec.bench_cases(preset) if case is None or case in c.label]
    if not pairs:
        refuse("case", case or "", [c.label for spec in specs for c in spec.bench_cases(preset)])
    for option in plan or []:
        if option not in OPTIONS:
            refuse("plan", option, OPTIONS)
    if explain:
        with product_options(*(plan or [])):
            print("\n\n".join(explanations(pairs)))
        return
    if plan:
        print(
            "hunyuan-kernels: --plan: plans are made for a GPU, which is not timed here; add --explain", file=sys.stderr
        )
        raise typer.Exit(2)
    if json_file is not None and json_file != "-":
        _require_writable(json_file)
    if threads is not None:
        torch.set_num_threads(threads)
    where = machine.describe()
    progress = Console(stderr=True)
    steps = track(pairs, "measuring", console=progress, disable=not progress.is_terminal, transient=True)
    with MemoryProbe() as probe:
        settings = Bench(seconds, patience, cold, preset, probe, providers)
        results = [settings.measure(spec, one) for spec, one in steps]
    if json_file != "-":
        title = (
            f"{where['processor']}, threads: {where['threads']}, {'cold' if cold else 'warm'} caches, {where['commit']}"
        )
        console.print(bench_table(results, title))
    if json_file is None:
        return
    text = json.dumps({"machine": where, "results": [result.to_json() for result in results]}, indent=1)
    if json_file == "-":
        print(text)
    else:
        Path(json_file).write_text(text + "\n", encoding="utf-8")


def explanations(pairs: Iterable[tuple[OpSpec, Case]]) -> Iterable[str]:
    """What the host plans for each case on an H100 SXM: what it considered, and why it took what it took."""
    for spec, case in pairs:
        title = f"{spec.name} [{case.label}]"
        if spec.plan is None:
            yield f"{title}: no choice of kernels to explain"
            continue
        arguments = case.make(0)
        if not spec.on_cuda(arguments):
            yield f"{title}: the CUDA kernels do not take it"
            continue
        yield f"{title}, {SMS} SMs\n{spec.plan(arguments, SMS)}"


def _require_writable(target: str) -> None:
    """Before minutes of measuring, not after them."""
    try:
        with Path(target).open("a"):
            pass
    except OSError as error:
        print(f"hunyuan-kernels: --json: cannot write {target}: {error.strerror}", file=sys.stderr)
        raise typer.Exit(2) from error


def op_report(output: Console = console, seconds: float = 0.5) -> bool:
    """Checks every op against its reference and times it against the best baseline, on small sizes.

    Checks run on the best instruction set of this CPU; times are interleaved, ``seconds`` for each op. Prints one table
    to ``output``; returns whether all checks passed.
    """
    table = Table("op", title="Every op against its reference, and against PyTorch")
    for name in ("cases", "error / bound", "check"):
        table.add_column(name, justify="right")
    table.add_column("timed on")
    for name in ("median", "best baseline", "its median", "x"):
        table.add_column(name, justify="right")
    settings, passed = Bench(seconds=seconds), True
    specs = list(all_specs())
    for spec in track(specs, "ops", console=output, disable=not output.is_terminal, transient=True):
        count, worst, failures = check_op(spec)
        passed = passed and not failures
        result = settings.measure(spec, spec.bench_cases(None)[0])
        best, verdict = result.best_baseline, "[red]FAILED[/red]" if failures else "ok"
        row = [spec.name, str(count), f"{worst:.2f}", verdict, result.case, duration(result.timing.median)]
        row += ["-"] * 3 if best is None else [best, duration(result.baselines[best].median), f"{result.speedup:.2f}"]
        table.add_row(*row)
        for name, timing in result.baselines.items():
            if name.startswith("naive"):
                table.add_row("", "", "", "", "", "", name, duration(timing.median), "not judged")
        for failure in failures[:3]:
            output.print(f"[red]{spec.name}[/red] {failure}", markup=True, highlight=False)
    output.print(table)
    return passed
