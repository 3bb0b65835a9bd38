"""A Hopper GPU simulated on the CPU: runs the CUDA path of the ops on CPU tensors, from the PTX of their kernels.

    with hunyuan_kernels.simulated_gpu(seed=0, sms=8) as gpu:
        q, scale = hunyuan_kernels.quantize_fp8(x, "row")  # x on the CPU
    print(gpu.reports[0])

Plan, tensor maps, arguments and launch are the lines of code that serve a GPU; only the CUDA driver's functions are the
simulator's. It proves logic and counts work; it does not time.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hunyuan_kernels import _ops
from hunyuan_kernels._ops import NAMESPACE, ops

Extent = tuple[int, int, int]

#: Upper bound of a latency: beyond it a launch would only be slow.
MAX_LATENCY = 1 << 24
MAX_SMS = 1024

_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
_thread = threading.local()
_count_lock = threading.Lock()


@cache
def device_ptx(stem: str) -> str:
    """The PTX of a stem's kernels for sm_90a. Torch loses the memory of every text that an op returns."""
    return ops.device_ptx(stem)


@dataclass(frozen=True)
class LaunchReport:
    """What one launch did. Counts are those of the executed PTX."""

    kernel: str
    grid: Extent
    block: Extent
    cluster: Extent
    counters: dict[str, Any]  #: requests, sectors and bytes of global memory, TMA, tensor cores, barriers, ...
    instructions: dict[str, int]  #: instructions that warps issued, by class
    lane_instructions: int
    warp_instructions: int
    by_line: dict[int, int]  #: executions by warps of each line of the PTX
    output: str  #: of printf in the kernel
    text: str  #: the whole report for people

    def __str__(self) -> str:
        return f"grid {self.grid} block {self.block} cluster {self.cluster}\n{self.text}"


class SimulatedGpu:
    """What :func:`simulated_gpu` yields."""

    def __init__(self, gpu: Any) -> None:
        self._gpu = gpu

    @property
    def reports(self) -> list[LaunchReport]:
        """One per launch that completed, in order."""
        return [
            LaunchReport(
                kernel=launch.report.kernel,
                grid=launch.grid,
                block=launch.block,
                cluster=launch.cluster,
                counters=launch.report.counters,
                instructions=launch.report.by_class,
                lane_instructions=launch.report.lane_instructions,
                warp_instructions=launch.report.warp_instructions,
                by_line=launch.report.by_line,
                output=launch.report.output,
                text=str(launch.report),
            )
            for launch in self._gpu.completed
        ]

    @property
    def findings(self) -> list[str]:
        """Texts of what was found wrong with launches; each was raised as an error too."""
        return self._gpu.findings

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """Within the block, launches are queued as in a stream of a GPU, and run at its end: each may begin while the
        ones before it are not complete, as programmatic dependent launch allows. Results are there after the block.

        What touches memory too early is raised at the end of the block as ``SimError``.
        """
        ops.simulate_overlap(True)
        try:
            yield
        finally:
            ops.simulate_overlap(False)

    def load_instead(self, stem: str, module: Any) -> None:
        """Kernels of a stem come from this ``_C.simulator.Module``, not from the PTX of the build for sm_90a; to be
        called before the first op of the stem."""
        self._gpu.substitute(device_ptx(stem), module)


class _CudaPath(TorchDispatchMode):
    """Sends the ops of this package to their CUDA kernels, whatever the device of their tensors."""

    def __init__(self, gpu: SimulatedGpu, error: type[Exception]) -> None:
        super().__init__()
        self.gpu, self.error = gpu, error

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call: Callable[..., Any] = func
        if func.namespace != NAMESPACE:
            return call(*args, **(kwargs or {}))
        found = len(self.gpu.findings)
        try:
            return func.redispatch(_CUDA, *args, **(kwargs or {}))
        except RuntimeError:
            if new := self.gpu.findings[found:]:
                raise self.error(f"{func._opname}: {new[0]}") from None
            raise


def _checked(name: str, value: int, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"simulated_gpu: {name} is {value!r}; an int is required")
    if not low <= value <= high:
        raise ValueError(f"simulated_gpu: {name} is {value}; allowed: {low} to {high}")
    return value


def _capability_options(capability: int) -> dict[str, int]:
    """With the shared memory that a block can have."""
    kibibytes = {80: 163, 90: 227}
    if capability not in kibibytes:
        raise ValueError(f"simulated_gpu: capability is {capability!r}; allowed: {', '.join(map(str, kibibytes))}")
    return {"capability": capability, "max_shared_bytes": 1024 * kibibytes[capability]}


@contextmanager
def simulated_gpu(
    seed: int = 0,
    sms: int = 8,
    *,
    latency: int = 64,
    check_races: bool = True,
    split_warps: bool = True,
    schedule: str = "random",
    capability: int = 90,
) -> Iterator[SimulatedGpu]:
    """Within the block, ops that this thread calls on CPU tensors run their CUDA kernels on a simulated Hopper GPU.

    Other threads, also those started inside, are not affected. What is found wrong in a kernel (an access out of
    bounds, a race, a missing wait or fence, a deadlock) is raised as ``hunyuan_kernels._C.simulator.SimError``, naming
    the op, kernel, PTX line, block, warp, lane and address.

    Args:
        seed: of the schedule; another seed runs warps and asynchronous copies in another order.
        sms: streaming multiprocessors of the GPU: what plans see, and how many blocks are resident at once.
        latency: upper bound of the random latency of asynchronous work, in scheduling steps.
        check_races: follow what orders accesses to shared memory, and report those that nothing orders (slower).
        split_warps: let the lanes of a warp run apart between instructions that synchronize them.
        schedule: ``"random"``, or one that holds something back for whole phases: ``"hold_warps"``, ``"hold_block"``,
            ``"hold_copies"``.
        capability: compute capability, 10 * major + minor: 90, Hopper; or 80, Ampere, for which the row movements,
            routing, quantization and SwiGLU have device code too, with neither clusters nor overlapping launches.

    Yields:
        A :class:`SimulatedGpu`; its ``reports`` hold a :class:`LaunchReport` per launch, also after the block.

    Raises:
        MissingKernelError: an op was called that has no CUDA kernel.
        RuntimeError: the thread is inside another ``simulated_gpu``, or the build has no device code (no nvcc).
        TypeError, ValueError: a setting of a wrong type or out of range.
    """
    options = {
        "seed": _checked("seed", seed, 0, 2**64 - 1),
        "num_sms": _checked("sms", sms, 1, MAX_SMS),
        "async_latency": _checked("latency", latency, 1, MAX_LATENCY),
        "check_races": check_races,
        "split_warps": split_warps,
        "schedule": schedule,
        **_capability_options(capability),
    }
    with simulated_gpu_of(options) as gpu:
        yield gpu


@contextmanager
def simulated_gpu_of(options: Mapping[str, Any]) -> Iterator[SimulatedGpu]:
    """:func:`simulated_gpu` with the options of ``_C.simulator.Gpu`` under their own names, all that there are."""
    try:
        from hunyuan_kernels._C import driver, simulator
    except ImportError as error:
        raise ImportError(
            f"simulated_gpu: hunyuan_kernels._C, which holds the simulator, does not load ({error}); build the package "
            "again (./dev setup)"
        ) from error

    if getattr(_thread, "active", False):
        raise RuntimeError("simulated_gpu: this thread is inside another simulated_gpu; leave that one first")
    # An op does not know what ran before it in the stream: its kernels wait before they touch memory.
    gpu = driver.SimulatedGpu(simulator.Gpu(**{"assume_predecessor": True, **options}))
    simulated = SimulatedGpu(gpu)
    gpu.make_current()
    ops.simulate(driver.table_address())
    _thread.active = True
    with _count_lock:
        _ops.simulating += 1
    try:
        with _CudaPath(simulated, simulator.SimError):
            yield simulated
    finally:
        _thread.active = False
        with _count_lock:
            _ops.simulating -= 1
        ops.simulate(0)
        gpu.make_none_current()
