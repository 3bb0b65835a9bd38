"""What the demo shows: two tables, a plot and a JSON file."""

import dataclasses
import json
import math
import platform
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from hunyuan_kernels._ops import ops
from hunyuan_kernels._version import __version__
from hunyuan_kernels.demo.experiment import BIGRAM_MARGIN, Check, Results, Run
from hunyuan_kernels.demo.generation import Speed

COLOURS = {"drop": "#D55E00", "recycle": "#0072B2"}  # told apart with any colour vision
LABELS = {"drop": "overflow dropped", "recycle": "overflow recycled"}


def last_tenth(values: list[Any]) -> list[Any]:
    """The end of the training, long enough for a mean."""
    return values[-max(1, len(values) // 10) :]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def final_load(run: Run) -> Tensor:
    """``[num_layers, num_experts]`` demand relative to an even share, mean of the last tenth, busiest expert first."""
    return torch.stack([step.demand for step in last_tenth(run.steps)]).mean(0).sort(1, descending=True).values


def summary(run: Run) -> dict[str, float]:
    """The numbers of one training; "final" ones are means of the last tenth of the steps."""
    final = last_tenth(run.steps)
    load = final_load(run)
    return {
        "training_bits_per_byte_final": mean([step.loss for step in final]) / math.log(2),
        "held_out_bits_per_byte": run.bits_per_byte,
        "dropped_share": mean([step.dropped for step in run.steps]),
        "dropped_share_final": mean([step.dropped for step in final]),
        "recycled_share": mean([step.recycled for step in run.steps]),
        "recycled_share_final": mean([step.recycled for step in final]),
        "busiest_expert_load_final": float(load[:, 0].mean()),
        "idlest_expert_load_final": float(load[:, -1].mean()),
        "seconds": run.seconds,
    }


def training_table(results: Results) -> Table:
    """Both trainings side by side."""
    table = Table("", *(LABELS[run.overflow] for run in results.runs), title="Training")
    rows = [
        ("training loss, bits per byte, last tenth", "training_bits_per_byte_final", ".3f"),
        ("held-out bits per byte", "held_out_bits_per_byte", ".3f"),
        ("tokens without an expert", "dropped_share", ".1%"),
        ("  last tenth", "dropped_share_final", ".1%"),
        ("tokens sent to another expert", "recycled_share", ".1%"),
        ("  last tenth", "recycled_share_final", ".1%"),
        ("load of the busiest expert, 1 is even, last tenth", "busiest_expert_load_final", ".2f"),
        ("load of the least busy expert", "idlest_expert_load_final", ".2f"),
        ("seconds", "seconds", ".0f"),
    ]
    summaries = [summary(run) for run in results.runs]
    for label, key, form in rows:
        table.add_row(label, *(format(values[key], form) for values in summaries))
    return table


def speed_table(speeds: list[Speed]) -> Table:
    """What generating took."""
    table = Table("generation, greedy", "tokens/s", "tokens per step of a text", title="Generation")
    for speed in speeds:
        table.add_row(speed.name, f"{speed.tokens_per_second:.0f}", f"{speed.tokens_per_step:.2f}")
    return table


def check_table(checks: list[Check]) -> Table:
    """What had to hold, and whether it did."""
    table = Table("check", "got", "required", "result", title="Checks")
    for check in checks:
        result = "[green]ok[/green]" if check.passed else "[red]FAILED[/red]"
        table.add_row(check.name, check.got, check.required, result)
    return table


def _smooth(values: list[float]) -> list[float]:
    """Running mean over a twentieth of the steps: single batches are noisy."""
    width = max(1, len(values) // 20)
    sums = torch.tensor([0.0, *values], dtype=torch.float64).cumsum(0)
    return ((sums[width:] - sums[:-width]) / width).tolist()


def _curve(axes: Axes, run: Run, values: list[float], label: str) -> None:
    smooth = _smooth(values)
    first = len(values) - len(smooth) + 1
    dashes = "--" if run.overflow == "recycle" else "-"  # the curves may lie on each other
    axes.plot(range(first, len(values) + 1), smooth, dashes, color=COLOURS[run.overflow], label=label, linewidth=2)


def plot(results: Results, path: Path) -> None:
    """Loss, overflow and expert load of both trainings, and bits per byte of everything, in one picture."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    (loss, overflow), (load, bits) = figure.subplots(2, 2)
    for run in results.runs:
        label = LABELS[run.overflow]
        _curve(loss, run, [step.loss / math.log(2) for step in run.steps], label)
        _curve(overflow, run, [100 * (step.dropped + step.recycled) for step in run.steps], label)
    loss.axhline(results.bigram, color="grey", linestyle=":", label="bigram model, held-out")
    loss.set(title="Training loss", xlabel="step", ylabel="bits per byte")
    overflow.set(title="Tokens past the capacity of their expert", xlabel="step", ylabel="% of tokens", ylim=(0, None))

    width = 0.4
    for i, run in enumerate(results.runs):
        values = final_load(run).mean(0).tolist()
        places = [rank + (i - 0.5) * width for rank in range(1, len(values) + 1)]
        load.bar(places, values, width, color=COLOURS[run.overflow], label=LABELS[run.overflow])
    load.axhline(1, color="black", linestyle="--", label="capacity = even share")
    load.set(
        title="Expert load asked for by the router, end of training",
        xlabel="expert, busiest first (mean over layers)",
        ylabel="relative to an even share",
        xticks=range(1, final_load(results.runs[0]).shape[1] + 1),
    )

    bars = [("bigram model", results.bigram, "grey")]
    bars += [(LABELS[run.overflow], run.bits_per_byte, COLOURS[run.overflow]) for run in results.runs]
    bars += [(textwrap.fill(q.name, 20), q.bits_per_byte, "#44546A") for q in results.quantized]
    names, heights, colours = zip(*bars, strict=True)
    drawn = bits.barh(names, heights, color=colours)
    bits.bar_label(drawn, fmt="%.3f", label_type="center", color="white", fontweight="bold")
    bits.axvline((1 - BIGRAM_MARGIN) * results.bigram, color="black", linestyle="--")
    bits.invert_yaxis()
    bits.set(
        title="Held-out bits per byte",
        xlabel=f"lower is better; dashed: the limit, {BIGRAM_MARGIN:.0%} below the bigram model",
    )

    for axes in (loss, overflow, load):
        axes.legend()
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def as_json(results: Results, checks: list[Check]) -> dict[str, Any]:
    """All numbers, for programs: settings, machine, curves, checks."""
    return {
        "settings": dataclasses.asdict(results.settings),
        "versions": {
            "hunyuan_kernels": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "matplotlib": matplotlib.__version__,
        },
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "instruction_set": ops.instruction_set(),
            "threads": torch.get_num_threads(),
        },
        "model": dataclasses.asdict(results.runs[0].model.config)
        | {"num_parameters": results.runs[0].model.config.num_parameters},
        "bigram_bits_per_byte": results.bigram,
        "runs": {
            run.overflow: summary(run)
            | {
                "loss": [step.loss for step in run.steps],
                "dropped": [step.dropped for step in run.steps],
                "recycled": [step.recycled for step in run.steps],
                "load_final": final_load(run).tolist(),
            }
            for run in results.runs
        },
        "fp8_bits_per_byte": {quantized.name: quantized.bits_per_byte for quantized in results.quantized},
        "checks": [dataclasses.asdict(check) for check in checks],
    }


def write(results: Results, checks: list[Check], folder: Path) -> list[Path]:
    """``demo.png`` and ``demo.json`` in the folder."""
    picture, numbers = folder / "demo.png", folder / "demo.json"
    plot(results, picture)
    numbers.write_text(json.dumps(as_json(results, checks), indent=1) + "\n", encoding="utf-8")
    return [picture, numbers]
