"""Compiles the test kernels to PTX where an nvcc is found; elsewhere their tests are skipped with that reason."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hunyuan_kernels._C import simulator

KERNELS = Path(__file__).resolve().parent / "kernels"


def find_nvcc() -> str | None:
    candidates = [os.environ.get("NVCC"), shutil.which("nvcc")]
    if home := os.environ.get("CUDA_HOME"):
        candidates.append(f"{home}/bin/nvcc")
    return next((c for c in candidates if c and shutil.which(c)), None)


def compile_module(name: str, *flags: str) -> simulator.Module:
    return simulator.Module(compile_ptx(name, *flags))


@functools.cache
def compile_ptx(name: str, *flags: str) -> str:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip(f"no nvcc to make PTX of {name}: neither NVCC, CUDA_HOME nor PATH leads to one")
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "out.ptx"
        command = [nvcc, "-std=c++20", "-O3", "-arch=compute_90a", "-ptx", *flags, str(KERNELS / name), "-o", str(ptx)]
        subprocess.run(command, check=True)
        return ptx.read_text()
