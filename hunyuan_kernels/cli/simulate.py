"""``check --simulate``: the CUDA kernels of the ops on a simulated GPU."""

import sys

from rich.console import Console
from rich.table import Table

from hunyuan_kernels._ops import MissingKernelError, ops
from hunyuan_kernels.testing.simulated import SETTINGS, check_simulated
from hunyuan_kernels.testing.spec import OpSpec


def has_device_code() -> bool:
    """Whether there is anything to simulate; says on standard error why there is not."""
    if not ops.device_stems():
        print(
            "hunyuan-kernels: this build has no device code to simulate: no nvcc was found when it was made. Install "
            "the CUDA toolkit (or pip's nvidia-cuda-nvcc) and build again.",
            file=sys.stderr,
        )
    return bool(ops.device_stems())


def not_simulated(error: MissingKernelError) -> str:
    """The error in a few words."""
    return f"not simulated: {str(error).split(':')[0]} has no CUDA kernel"


def check_on_simulated_gpu(specs: list[OpSpec], seeds: int, named: bool, console: Console) -> int:
    """Prints a row per op and setting; returns the exit code: 1 on a difference or a finding, 2 without device code or
    when an op that was named has no CUDA kernel."""
    if not has_device_code():
        return 2
    table = Table(
        "op", "setting", "cases", "largest error, of the bound", "bytes read, of the demanded", "written", "result"
    )
    failures, without_kernel = [], []
    for spec in specs:
        try:
            for setting in SETTINGS:
                outcome = check_simulated(spec, setting, seeds)
                traffic = outcome.moved.over(outcome.demanded)
                failures += outcome.failures
                table.add_row(
                    spec.name,
                    setting,
                    str(outcome.cases),
                    f"{outcome.worst:.2f}",
                    f"{traffic.read:.2f}",
                    f"{traffic.written:.2f}",
                    f"{len(outcome.failures)} failed" if outcome.failures else "ok",
                )
        except MissingKernelError as error:
            table.add_row(spec.name, "", "", "", "", "", not_simulated(error))
            without_kernel.append(str(error))
    console.print(table)
    for failure in failures:
        print(failure, file=sys.stderr)
    if named:
        for text in without_kernel:
            print(f"hunyuan-kernels: --simulate: {text}", file=sys.stderr)
    return 1 if failures else 2 if named and without_kernel else 0
