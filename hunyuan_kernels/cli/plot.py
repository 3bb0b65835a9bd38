"""``hunyuan-kernels plot``: pictures of what ``bench --json`` measured."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

plot = typer.Typer(no_args_is_help=True, help="Pictures of what `bench --json` measured.")


@plot.callback()
def _group() -> None:
    """Keeps `roofline` a command of its own while it is the only one."""


def _fail(message: str) -> typer.Exit:
    print(f"hunyuan-kernels: plot: {message}", file=sys.stderr)
    return typer.Exit(2)


def _read(file: Path) -> dict[str, Any]:
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _fail(f"cannot read {file}: {error}") from error
    if not isinstance(report, dict) or not {"machine", "results"} <= report.keys():
        raise _fail(f"{file} holds no results; make some with: hunyuan-kernels bench --json {file}")
    return report


def roofline_figure(report: dict[str, Any]) -> Figure:
    """The roof is the best that the probes reached in any case; ops without arithmetic have no place on it."""
    results = [result for result in report["results"] if result["work"]["flops"] and result["work"]["bytes"]]
    if not results:
        raise ValueError("no result has arithmetic: a roofline needs flops and bytes")
    flops = max(result["ceiling"]["flops_per_second"] for result in results)
    bandwidth = max(result["ceiling"]["bytes_per_second"] for result in results)
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    intensities = [result["work"]["flops"] / result["work"]["bytes"] for result in results]
    ridge = flops / bandwidth
    ends = [min(*intensities, ridge) / 2, ridge, max(*intensities, ridge) * 2]
    roof = [min(flops, bandwidth * x) / 1e12 for x in ends]
    label = f"measured ceiling: {flops / 1e12:.3g} TFLOP/s, {bandwidth / 1e9:.3g} GB/s"
    axes.loglog(ends, roof, color="black", linewidth=1, label=label)
    for op in dict.fromkeys(result["op"] for result in results):
        points = [(x, r["flops_per_second"] / 1e12) for x, r in zip(intensities, results, strict=True) if r["op"] == op]
        axes.loglog(*zip(*points, strict=True), marker="o", linestyle="", label=op)
    machine = report["machine"]
    axes.set(
        xlabel="flops per byte that the shapes demand",
        ylabel="TFLOP/s",
        title=f"{machine['processor']}, threads: {machine['threads']}, {machine['commit']}",
    )
    axes.grid(which="both", alpha=0.2)
    axes.legend()
    return figure


@plot.command()
def roofline(
    file: Annotated[Path, typer.Argument(metavar="BENCH.JSON", help="What `bench --json` wrote.")],
    output: Annotated[Path | None, typer.Option(help="Image; BENCH.svg beside the file when not given.")] = None,
) -> None:
    """Every case as a point under the measured ceilings of its machine."""
    target = output or file.with_suffix(".svg")
    report = _read(file)
    try:
        roofline_figure(report).savefig(target)
    except (OSError, ValueError) as error:
        raise _fail(f"{target}: {error}") from error
    print(target)
