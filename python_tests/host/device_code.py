"""Assembles and disassembles the device code of the build, where the tools are found."""

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from hunyuan_kernels._ops import ops
from python_tests.simulator.nvcc import find_nvcc


def find_tool(name: str) -> str:
    """A tool of the CUDA toolkit: on PATH, beside nvcc, or in Triton's package. Skips where it is in none of them."""
    folders = [Path(nvcc).resolve().parent for nvcc in [find_nvcc()] if nvcc]
    if (triton := importlib.util.find_spec("triton")) and triton.origin:
        folders.append(Path(triton.origin).parent / "backends/nvidia/bin")
    found = next(
        (
            found
            for found in [shutil.which(name), *map(str, (f / name for f in folders))]
            if found and shutil.which(found)
        ),
        None,
    )
    if found is None:
        pytest.skip(f"no {name}: neither PATH nor the folder of nvcc nor Triton's package has it")
    return found


@functools.cache
def assemble(stem: str) -> tuple[bytes, str]:
    """The cubin that ptxas makes of a stem's PTX, and what ptxas says about it."""
    ptxas = find_tool("ptxas")
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "in.ptx", Path(folder) / "out.cubin"
        ptx.write_text(ops.device_ptx(stem))
        said = subprocess.run(
            [ptxas, "-arch=sm_90a", "-v", "-o", cubin, ptx], check=True, capture_output=True, text=True
        )
        return cubin.read_bytes(), said.stdout + said.stderr


@functools.cache
def ptx_kernels(stem: str) -> dict[str, list[str]]:
    """Kernel to its lines of PTX: instructions and labels."""
    entries = re.split(r"\.entry (\w+)\(", ops.device_ptx(stem))[1:]
    return {name: [line.strip() for line in body.splitlines()] for name, body in zip(*[iter(entries)] * 2, strict=True)}


@functools.cache
def disassemble(stem: str) -> dict[str, list[str]]:
    """Kernel to its lines of SASS: instructions and labels."""
    nvdisasm = find_tool("nvdisasm")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "in.cubin"
        cubin.write_bytes(assemble(stem)[0])
        text = subprocess.run([nvdisasm, "-c", cubin], check=True, capture_output=True, text=True).stdout
    kernels: dict[str, list[str]] = {}
    for line in text.splitlines():
        if start := re.match(r"\.text\.(\w+):", line):
            kernels[start[1]] = []
        elif kernels and (match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;|(\.L_x_\d+):", line)):
            next(reversed(kernels.values())).append(match[1] or f"{match[2]}:")
    return kernels
