"""The ops on a GPU, from the cases of their specs:

python -m bench.gpu.ops check [--cases N]   # every case against its reference
python -m bench.gpu.ops bench               # real sizes, and those that others publish, beside torch's kernels; options
                                            # of plans, a copy and a product
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu.conformance.target import gpu_missing
from bench.gpu.published import published
from hunyuan_kernels._ops import MissingKernelError
from hunyuan_kernels.testing import machine
from hunyuan_kernels.testing.product_options import OPTIONS, product_options
from hunyuan_kernels.testing.spec import PRESETS, Case, OpSpec, all_specs

NO_KERNEL = "the op has no CUDA kernel"
NOT_ON_CUDA = "the CUDA kernels do not take it"


def moved(value: Any, device: str) -> Any:
    """An argument or a result on a device, tuples and lists by their parts."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(part, device) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(moved(part, device) for part in value)
    return value


def arguments_on(case: Case, device: str) -> dict[str, Any]:
    return {name: moved(value, device) for name, value in case.make(0).items()}


@dataclass
class Checked:
    """Of one op."""

    op: str
    cases: int = 0
    worst: float = 0.0  #: largest error, of the bound
    failures: list[str] = field(default_factory=list)
    note: str = ""


def check(spec: OpSpec, device: str, limit: int | None = None) -> Checked:
    """Runs the cases on a device and compares with the reference on the CPU."""
    outcome = Checked(spec.name, note="" if spec.cuda_cases() else NOT_ON_CUDA)
    for case in itertools.islice(spec.cuda_cases(), limit):
        try:
            got = moved(spec.function(**arguments_on(case, device)), "cpu")
        except MissingKernelError:
            outcome.note = NO_KERNEL
            return outcome
        except RuntimeError as error:
            outcome.failures.append(f"[{case.label}]: {error}")
            continue
        arguments = case.make(0)
        comparisons = spec.compare(arguments, got, spec.reference(**arguments))
        outcome.cases += 1
        outcome.worst = max([outcome.worst, *(c.max_ratio for c in comparisons)])
        outcome.failures += [f"[{case.label}]: {c.message}" for c in comparisons if not c]
    return outcome


Timer = Callable[[Callable[[], object]], float]


def gpu_timer() -> Timer:
    """Seconds of one call between two events; 256 MiB are written before, so that the L2 cache holds nothing of use."""
    scratch = torch.empty(2**26, dtype=torch.int32, device="cuda")

    def seconds(function: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        scratch.zero_()
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return seconds


def wall_timer(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@dataclass
class Row:
    """One op or baseline on one case; ``note`` says why there is no time."""

    op: str
    case: str
    what: str
    seconds: float | None = None
    flops_per_second: float | None = None
    bytes_per_second: float | None = None
    times_op: float | None = None  #: its time over the op's
    note: str = ""


def measure(spec: OpSpec, case: Case, device: str, timer: Timer, rounds: int) -> list[Row]:
    """The op and its baselines, interleaved; one that raises has a note instead of a time."""
    arguments = case.make(0)
    if not spec.on_cuda(arguments):
        return [Row(spec.name, case.label, spec.name, note=NOT_ON_CUDA)]
    work, arguments = spec.work(arguments), {name: moved(value, device) for name, value in arguments.items()}
    rows: dict[str, Row] = {}
    functions: dict[str, Callable[[], object]] = {}
    for name, function in {spec.name: spec.function, **spec.baselines}.items():
        rows[name] = Row(spec.name, case.label, name)
        try:
            function(**arguments)
            functions[name] = partial(function, **arguments)
        except MissingKernelError:
            rows[name].note = NO_KERNEL
        except (RuntimeError, NotImplementedError, ValueError) as error:
            rows[name].note = next(iter(str(error).splitlines()), type(error).__name__)
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            samples[name].append(timer(function))
    for name, taken in samples.items():
        seconds = statistics.median(taken)
        rows[name].seconds = seconds
        rows[name].flops_per_second, rows[name].bytes_per_second = work.flops / seconds, work.bytes / seconds
        if spec.name in samples:
            rows[name].times_op = seconds / statistics.median(samples[spec.name])
    return list(rows.values())


def with_plan_options(spec: OpSpec, case: Case, sms: int) -> OpSpec:
    """The op also under every choice of the options of plans that hardware has to decide and that changes its plan."""
    if spec.plan is None or not spec.on_cuda(arguments := case.make(0)):
        return spec
    usual, variants = str(spec.plan(arguments, sms)), {}
    for chosen in itertools.chain.from_iterable(itertools.combinations(OPTIONS, n + 1) for n in range(len(OPTIONS))):
        with product_options(*chosen):
            if str(spec.plan(arguments, sms)) != usual:
                variants[f"with {', '.join(chosen)}"] = product_options(*chosen)(spec.function)
    return replace(spec, baselines={**variants, **spec.baselines})


def ceilings(device: str, timer: Timer, rounds: int, elements: int = 2**29, size: int = 8192) -> Iterator[Row]:
    """What the device reaches at best in this run: bytes of a copy, flops of torch's bf16 product."""
    source = torch.zeros(elements, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    matrix = torch.randn(size, size, device=device).bfloat16()
    for what, function, flops, moved_bytes in (
        ("copy", lambda: target.copy_(source), 0.0, 4.0 * elements),
        ("bf16 product", lambda: matrix @ matrix, 2.0 * size**3, 0.0),
    ):
        function()
        seconds = statistics.median(timer(function) for _ in range(rounds))
        yield Row("ceiling", what, "torch", seconds, flops / seconds, moved_bytes / seconds)


def table(rows: Iterable[Row]) -> str:
    lines = ["| op | case | what | us | TFLOP/s | GB/s | x op |", "|---|---|---|---:|---:|---:|---:|"]
    for r in rows:
        if r.seconds is None:
            lines.append(f"| {r.op} | {r.case} | {r.what} | {r.note} | | | |")
            continue
        rates = [f"{(r.flops_per_second or 0) / 1e12:.1f}", f"{(r.bytes_per_second or 0) / 1e9:.0f}"]
        times = "" if r.times_op is None else f"{r.times_op:.2f}"
        lines.append(f"| {r.op} | {r.case} | {r.what} | {r.seconds * 1e6:.1f} | {' | '.join(rates)} | {times} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.gpu.ops", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checks = commands.add_parser("check", help="every case against its reference")
    checks.add_argument("--cases", type=int, help="only the first so many of each op")
    benches = commands.add_parser("bench", help="real sizes beside torch's kernels")
    benches.add_argument("--json", type=Path, metavar="FILE")
    benches.add_argument("--preset", choices=PRESETS, default=PRESETS[0])
    benches.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if missing := gpu_missing():
        print(f"bench.gpu.ops: no Hopper GPU to run on: {missing}", file=sys.stderr)
        return 2
    if options.command == "check":
        outcomes = [check(spec, "cuda", options.cases) for spec in all_specs()]
        for o in outcomes:
            print(f"{o.op}: {o.note or f'{o.cases} cases, largest error {o.worst:.2f} of the bound'}")
            print("".join(f"  FAILED {failure}\n" for failure in o.failures), end="")
        if not any(o.cases for o in outcomes):
            print("bench.gpu.ops: nothing was checked: no op has a CUDA kernel in this build", file=sys.stderr)
            return 1
        return int(any(o.failures for o in outcomes))
    timer = gpu_timer()
    rows = list(ceilings("cuda", timer, options.rounds))
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    preset = ((spec, case) for spec in all_specs() for case in spec.bench_cases(options.preset))
    for spec, case in itertools.chain(preset, published()):
        rows += measure(with_plan_options(spec, case, sms), case, "cuda", timer, options.rounds)
    print(table(rows))
    if options.json:
        described = {**machine.describe(), "gpu": torch.cuda.get_device_name()}
        results = {"machine": described, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
