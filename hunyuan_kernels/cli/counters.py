"""``counters``: what the launches of an op do at a benchmark's size, counted on a simulated GPU."""

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from hunyuan_kernels._ops import MissingKernelError
from hunyuan_kernels.cli.common import chosen_specs, refuse
from hunyuan_kernels.simulator import simulated_gpu
from hunyuan_kernels.testing.simulated import demanded_bytes, moved_bytes
from hunyuan_kernels.testing.spec import PRESETS, OpSpec

#: SMs of an H100 SXM: plans depend on it.
SMS = 132
SECTOR_BYTES = 32
COLUMNS = ("case", "launch", "grid", "block", "bytes read", "bytes written", "sectors", "warp instructions / KiB")


def counter_rows(spec: OpSpec, preset: str | None) -> Iterator[tuple[str, ...]]:
    """One row of :data:`COLUMNS` per launch. Bytes are over what the shapes demand of the whole call, sectors over the
    fewest that the moved bytes can lie in.

    Raises:
        MissingKernelError: the op, or one that it is composed of, has no CUDA kernel.
    """
    for case in spec.bench_cases(preset):
        arguments = case.make(0)
        if not spec.on_cuda(arguments):
            continue
        with simulated_gpu(sms=SMS, check_races=False, split_warps=False) as gpu:
            got = spec.function(**arguments)
        demanded = demanded_bytes(spec.work(arguments), got if isinstance(got, tuple) else (got,))
        for report in gpu.reports:
            moved = moved_bytes([report])
            share, c = moved.over(demanded), report.counters
            sectors = c["global_load_sectors"] + c["global_store_sectors"]
            touched = c["global_load_bytes"] + c["global_store_bytes"]
            yield (
                case.label,
                f"`{report.kernel}`",
                "x".join(map(str, report.grid)),
                "x".join(map(str, report.block)),
                f"{share.read:.3f}",
                f"{share.written:.3f}",
                f"{sectors * SECTOR_BYTES / touched:.3f}" if touched else "-",
                f"{sum(report.instructions.values()) / ((moved.read + moved.written) / 1024):.1f}",
            )


def markdown(rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table of :func:`counter_rows`."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def counters(
    name: Annotated[str, typer.Argument(metavar="OP")],
    preset: Annotated[str | None, typer.Option(help=f"Sizes of a model: {', '.join(PRESETS)}.")] = None,
) -> None:
    """Counts what the CUDA kernels of an op do at a benchmark's size, on a simulated GPU: a Markdown table."""
    if preset is not None and preset not in PRESETS:
        refuse("preset", preset, PRESETS)
    try:
        print(markdown(counter_rows(chosen_specs([name])[0], preset)))
    except MissingKernelError as error:
        print(f"hunyuan-kernels: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
