"""PTX of the test kernels; where none was built and no nvcc is found their tests are skipped with that reason."""

import pytest
from hunyuan_kernels._C import simulator

from bench.gpu.conformance.code import MissingCodeError, find_nvcc, ptx_of

__all__ = ["compile_module", "compile_ptx", "find_nvcc"]


def compile_module(name: str) -> simulator.Module:
    return simulator.Module(compile_ptx(name))


def compile_ptx(name: str) -> str:
    try:
        return ptx_of(name)
    except MissingCodeError as reason:
        pytest.skip(str(reason))
