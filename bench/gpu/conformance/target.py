"""What kernels of the suite run on: a GPU, or a simulated one, by the same calls of the driver table."""

import functools
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hunyuan_kernels._C import driver, simulator
from torch import Tensor

#: Element types of tensor maps: CUtensorMapDataType.
MAP_TYPES = {"u8": 0, "u16": 1, "u32": 2, "s32": 3, "u64": 4, "s64": 5, "f16": 6, "f32": 7, "f64": 8, "bf16": 9}
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}


def gpu_missing() -> str:
    """Why the suite has no GPU to run on; "" where it has one."""
    try:
        count = driver.cuda_device_count()
    except RuntimeError as error:
        return str(error).removeprefix("hunyuan_kernels: ")
    if count == 0:
        return "the CUDA driver has no device"
    if not torch.cuda.is_available():
        return f"the CUDA driver has {count} device(s), but torch {torch.__version__} sees none: install torch for CUDA"
    capability = torch.cuda.get_device_capability()
    if capability != (9, 0):
        name = torch.cuda.get_device_name()
        return f"{name} has compute capability {capability[0]}.{capability[1]}; Hopper, 9.0, is needed"
    return ""


@functools.cache
def parameter_sizes(code: str, kernel: str) -> list[int]:
    """Bytes of each parameter of a kernel, as its PTX declares them. A driver cannot check what it is given."""
    found = re.search(rf"\.entry\s+{re.escape(kernel)}\s*\((.*?)\)", code, re.S)
    if found is None:
        raise ValueError(f"the PTX has no kernel '{kernel}'")
    declared = re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.[a-z]+(\d+)\s+\w+(?:\[(\d+)\])?", found.group(1))
    return [int(bits) // 8 * int(count or 1) for bits, count in declared]


@dataclass(frozen=True)
class TensorMap:
    data: bytes
    tensor: Tensor  # lives as long as its map


class Target:
    """One device. Launches are queued until :meth:`finish`."""

    def __init__(self, runner: Any, device: str) -> None:
        self._runner, self.device = runner, torch.device(device)
        self._libraries: dict[str, Any] = {}
        self._used: dict[int, Tensor] = {}  # by address, alive until the launches have run

    @classmethod
    def simulated(cls, **options: Any) -> "Target":
        """A simulated GPU, which becomes the calling thread's; options of ``_C.simulator.Gpu``."""
        gpu = driver.SimulatedGpu(simulator.Gpu(**options))
        return cls(driver.CodeRunner(gpu), "cpu")

    @classmethod
    def gpu(cls) -> "Target":
        torch.cuda.init()
        return cls(driver.CodeRunner(torch.cuda.current_device()), f"cuda:{torch.cuda.current_device()}")

    def tensor(self, values: Tensor) -> Tensor:
        """A copy of its own on the device."""
        return values.detach().clone().to(self.device)

    def map(
        self,
        tensor: Tensor,
        box: Sequence[int],
        type_name: str,
        *,
        swizzle: int = 0,
        nan_fill: bool = False,
        element_strides: Sequence[int] = (),
    ) -> TensorMap:
        """A tensor map over the whole of a contiguous tensor; ``box`` from the innermost dimension on."""
        dimensions = list(tensor.shape[::-1])
        strides = [s * tensor.element_size() for s in tensor.stride()[::-1][1:]]
        data = self._runner.tensor_map(
            MAP_TYPES[type_name],
            tensor.data_ptr(),
            dimensions,
            strides,
            list(box),
            list(element_strides) or [1] * len(dimensions),
            SWIZZLES[swizzle],
            nan_fill,
        )
        return TensorMap(data, tensor)

    def launch(
        self,
        code: str,
        kernel: str,
        *arguments: Tensor | TensorMap | int | bytes,
        grid: int | Sequence[int] = 1,
        block: int = 32,
        cluster: int | Sequence[int] = 1,
        shared: int = 0,
        programmatic: bool = False,
    ) -> None:
        """Queues a kernel of this PTX text. Arguments: tensors (their address), tensor maps, 32-bit integers, bytes."""
        extents = [[e] if isinstance(e, int) else list(e) for e in (grid, block, cluster)]
        stream = torch.cuda.current_stream().cuda_stream if self.device.type == "cuda" else 0
        packed = [self._pack(argument) for argument in arguments]
        try:
            self._check_and_launch(code, kernel, packed, extents, shared, programmatic, stream)
        except (RuntimeError, ValueError):
            self._used.clear()  # a call that fails forgets what was declared for it
            raise

    def _check_and_launch(
        self,
        code: str,
        kernel: str,
        packed: list[bytes],
        extents: list[list[int]],
        shared: int,
        programmatic: bool,
        stream: int,
    ) -> None:
        given, wanted = [len(p) for p in packed], parameter_sizes(code, kernel)
        if given != wanted:
            raise ValueError(f"kernel {kernel} takes arguments of {wanted} bytes; {given} were given")
        if code not in self._libraries:
            self._libraries[code] = self._runner.load(code, f"the code with {kernel}")
        self._runner.launch(self._libraries[code], kernel, *extents, shared, programmatic, packed, stream)

    def _pack(self, argument: Tensor | TensorMap | int | bytes) -> bytes:
        if isinstance(argument, bytes):
            return argument
        if isinstance(argument, int):
            return struct.pack("<i", argument)
        tensor = argument.tensor if isinstance(argument, TensorMap) else argument
        address = tensor.data_ptr()
        if address not in self._used:
            self._used[address] = tensor
            self._runner.declare_memory("argument", address, tensor.numel() * tensor.element_size(), False)
        return argument.data if isinstance(argument, TensorMap) else struct.pack("<Q", address)

    def finish(self) -> None:
        """Until everything has run. Raises where a kernel failed."""
        self._runner.finish()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self._used.clear()
