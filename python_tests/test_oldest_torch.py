"""The bindings compile with the headers of the oldest torch that pyproject.toml allows: `./dev oldest` fetches them.

That such a torch then has the functions follows from TORCH_TARGET_VERSION: newer ones are not declared.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEADERS = Path(os.environ.get("HUNYUAN_KERNELS_OLDEST_TORCH", ROOT / ".venv/oldest-torch/torch")) / "include"
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def pinned():
    return re.search(
        r"^torch==(\d+)\.(\d+)", (ROOT / "requirements-oldest.txt").read_text(encoding="utf-8"), re.M
    ).groups()


def test_every_place_states_the_same_version():
    major, minor = pinned()
    assert f'"torch>={major}.{minor}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    target = re.search(r"TORCH_TARGET_VERSION=0x(\w\w)(\w\w)0{12}\b", CMAKE)
    assert [int(part, 16) for part in target.groups()] == [int(major), int(minor)]


def test_bindings_compile_with_its_headers():
    if not HEADERS.is_dir():
        pytest.skip(f"no headers of torch {'.'.join(pinned())} in {HEADERS}: ./dev oldest fetches them (80 MB)")
    version = (HEADERS / "torch/headeronly/version.h").read_text(encoding="utf-8")
    found = [re.search(rf"TORCH_VERSION_{part} (\d+)", version)[1] for part in ("MAJOR", "MINOR")]
    assert tuple(found) == pinned(), "these are the headers of another torch"
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    target = re.search(r"TORCH_TARGET_VERSION=\w+", CMAKE)[0]
    sources = [path for path in (ROOT / "csrc/bindings").glob("*.cpp") if not path.stem.endswith("module")]
    assert sources
    errors = []
    for path in sources:
        flags = ["-std=c++20", "-fsyntax-only", "-w", f"-D{target}", f"-I{ROOT / 'csrc'}", "-isystem", str(HEADERS)]
        done = subprocess.run([compiler, *flags, str(path)], check=False, capture_output=True, text=True)
        errors += [] if done.returncode == 0 else [done.stderr]
    assert not errors, "\n".join(errors)
