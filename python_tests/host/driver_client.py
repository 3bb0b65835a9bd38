"""Calls the simulated driver table as host code does, through its function pointers."""

import ctypes
import re
from pathlib import Path
from typing import Any

from hunyuan_kernels._C import driver

HEADER = Path(__file__).resolve().parents[2] / "csrc/driver/table.h"
#: The table's members in order, read from the header that defines it.
FUNCTIONS = [*re.findall(r"^ *X\((\w+),", HEADER.read_text(encoding="utf-8"), re.M), "declare_memory", "run_queue"]

CLUSTER_DIMENSION, PROGRAMMATIC_SERIALIZATION = 4, 6
MAX_DYNAMIC_SHARED, NON_PORTABLE_CLUSTER = 8, 14


class LaunchAttribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_uint * 16))


class LaunchConfig(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("attribute_count", ctypes.c_uint),
    )


class DriverError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Driver:
    """Each function of the table as a method; a result other than 0 becomes a :class:`DriverError`."""

    def __init__(self) -> None:
        table = (ctypes.c_void_p * len(FUNCTIONS)).from_address(driver.table_address())
        self.functions = dict(zip(FUNCTIONS, table, strict=True))

    def __getattr__(self, name: str) -> Any:
        function = ctypes.CFUNCTYPE(ctypes.c_int)(self.functions[name])
        if name == "declare_memory":
            return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_bool)(
                self.functions[name]
            )

        def call(*arguments: Any) -> None:
            if code := function(*arguments):
                text = ctypes.c_char_p()
                ctypes.CFUNCTYPE(ctypes.c_int)(self.functions["cuGetErrorString"])(code, ctypes.byref(text))
                assert text.value is not None
                raise DriverError(code, text.value.decode())

        return call

    def kernel(self, ptx: str, name: str) -> ctypes.c_void_p:
        library, kernel = ctypes.c_void_p(), ctypes.c_void_p()
        self.cuLibraryLoadData(ctypes.byref(library), ptx.encode(), None, None, 0, None, None, 0)
        self.cuLibraryGetKernel(ctypes.byref(kernel), library, name.encode())
        return kernel

    def launch(
        self,
        kernel: ctypes.c_void_p,
        *arguments: int,
        grid: int = 1,
        block: int = 32,
        shared_bytes: int = 0,
        attributes: dict[int, tuple[int, ...]] | None = None,
    ) -> None:
        values = [ctypes.c_uint64(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        given = (LaunchAttribute * len(attributes or {}))()
        for slot, (which, numbers) in zip(given, (attributes or {}).items(), strict=True):
            slot.id = which
            slot.value[: len(numbers)] = numbers
        config = LaunchConfig((grid, 1, 1), (block, 1, 1), shared_bytes, None, given, len(given))
        self.cuLaunchKernelEx(ctypes.byref(config), kernel, pointers, None)
