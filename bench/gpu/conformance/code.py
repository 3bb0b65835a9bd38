"""The PTX of python_tests/simulator/kernels/: made when the tree is built, or here where a source is newer."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
KERNELS = ROOT / "python_tests/simulator/kernels"
BUILT = ROOT / "build/test_kernels"
FLAGS = ("-std=c++20", "-O3", "-arch=compute_90a", "-ptx", "-w")


class MissingCodeError(RuntimeError):
    """No PTX was built, and there is no nvcc to make it."""


def find_nvcc() -> str | None:
    candidates = [os.environ.get("NVCC"), shutil.which("nvcc")]
    if home := os.environ.get("CUDA_HOME"):
        candidates.append(f"{home}/bin/nvcc")
    return next((c for c in candidates if c and shutil.which(c)), None)


@functools.cache
def ptx_of(name: str) -> str:
    """The PTX of a file of kernels/, such as "tensor.cu"."""
    built, source = BUILT / f"{Path(name).stem}.ptx", KERNELS / name
    nvcc = find_nvcc()
    sources = [source, *KERNELS.glob("*.cuh")]
    if built.is_file() and (nvcc is None or built.stat().st_mtime >= max(s.stat().st_mtime for s in sources)):
        return built.read_text()
    if nvcc is None:
        raise MissingCodeError(f"no nvcc to make PTX of {name}: neither NVCC, CUDA_HOME nor PATH leads to one")
    BUILT.mkdir(parents=True, exist_ok=True)
    unfinished = built.with_suffix(f".{os.getpid()}")
    subprocess.run([nvcc, *FLAGS, str(source), "-o", str(unfinished)], check=True)
    unfinished.replace(built)
    return built.read_text()
