"""CUTLASS from pip, and what is compiled with it: kept in build/ until a source changes."""

import hashlib
import importlib.util
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from nvcc import find_nvcc

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent / "cutlass"


def cutlass_headers() -> Path | None:
    """Of pip's package nvidia-cutlass, found without importing it (that would need its dependencies)."""
    spec = importlib.util.find_spec("cutlass_library")
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) / "source/include" if folders else None


def compile_with_cutlass(name: str, inputs: Sequence[Path], flags: Callable[[Path], list[str]]) -> Path:
    """``nvcc flags(folder) -o name``, in a folder of its own for every version of compiler and inputs."""
    nvcc, headers = find_nvcc(), cutlass_headers()
    if nvcc is None:
        pytest.skip("no nvcc to compile CUTLASS: neither NVCC, CUDA_HOME nor PATH leads to one")
    if headers is None:
        pytest.skip("no CUTLASS headers: pip install --no-deps -r requirements-headers.txt")
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    key = hashlib.sha256(version.encode() + b"".join(path.read_bytes() for path in inputs)).hexdigest()[:16]
    folder = ROOT / "build/cutlass" / key
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"unfinished-{name}"
        subprocess.run([nvcc, "-w", f"-I{headers}", *flags(folder), "-o", str(unfinished)], check=True)
        unfinished.rename(folder / name)
    return folder / name
