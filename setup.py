"""Builds the package: setuptools finds the Python files, CMake and ninja build the two libraries.

torch is not a build requirement (see pyproject.toml). Its headers are taken from the first of
  1. $HUNYUAN_KERNELS_TORCH_ROOT, the folder of a torch package,
  2. the torch of the running interpreter,
  3. the site-packages of the environment that pip builds for (visible on disk also under build isolation).
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "hunyuan_kernels/_version.py").read_text(), re.M).group(1)
STABLE_HEADER = "include/torch/csrc/stable/library.h"


def torch_root() -> Path:
    candidates = []
    if from_environment := os.environ.get("HUNYUAN_KERNELS_TORCH_ROOT"):
        candidates.append(Path(from_environment))
    else:
        spec = importlib.util.find_spec("torch")
        if spec and spec.origin:
            candidates.append(Path(spec.origin).parent)
        candidates += [Path(sysconfig.get_path(name)) / "torch" for name in ("platlib", "purelib")]
    for candidate in candidates:
        if (candidate / STABLE_HEADER).is_file() and (candidate / "lib/libtorch_cpu.so").is_file():
            return candidate
    looked = "\n  ".join(str(c) for c in dict.fromkeys(candidates))
    raise SystemExit(
        "hunyuan_kernels: building needs the headers of torch >= 2.10, and none were found. Looked in\n  "
        f"{looked}\nInstall torch first (pip install torch==2.13.0), or set HUNYUAN_KERNELS_TORCH_ROOT to the folder "
        "of a torch package."
    )


def job_count() -> int:
    """$MAX_JOBS, or one job per core but no more than one per 2 GiB of memory."""
    if jobs := os.environ.get("MAX_JOBS"):
        return max(1, int(jobs))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // 2**31))


def tool(name: str) -> str:
    """The tool beside this interpreter (build environment, virtual environment) or on PATH."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise SystemExit(f"hunyuan_kernels: building needs {name}: pip install {name}")
    return path


class CMakeBuild(build_ext):
    """Runs CMake once and puts libhunyuan_kernels.so and _C into the package."""

    def run(self) -> None:
        package = (ROOT if self.editable_mode or self.inplace else Path(self.build_lib).resolve()) / "hunyuan_kernels"
        build = Path(os.environ.get("HUNYUAN_KERNELS_BUILD_DIR", ROOT / "build" / self.plat_name)).resolve()
        jobs = job_count()
        import pybind11  # a build requirement

        torch = torch_root()
        print(f"hunyuan_kernels: torch headers from {torch}, {jobs} jobs, build folder {build}", flush=True)
        definitions = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "TORCH_ROOT": torch,
            "HUNYUAN_KERNELS_TEST_KERNELS": "ON" if self.editable_mode or self.inplace else "OFF",
            "HUNYUAN_KERNELS_NVCC": os.environ.get("HUNYUAN_KERNELS_NVCC", "auto"),
            "HUNYUAN_KERNELS_VERSION": VERSION,
        }
        flags = [f"-D{name}={value}" for name, value in definitions.items()]
        cmake = tool("cmake")
        subprocess.run([cmake, "-G", "Ninja", "-S", ROOT, "-B", build, *flags], check=True)
        subprocess.run([cmake, "--build", build, "-j", str(jobs)], check=True)
        package.mkdir(parents=True, exist_ok=True)
        for library in [build / "libhunyuan_kernels.so", *build.glob("_C.*.so")]:
            # Replaced, not overwritten: a running process keeps the file that it has mapped.
            target = package / library.name
            target.unlink(missing_ok=True)
            shutil.copy2(library, target)

    def get_outputs(self) -> list[str]:
        return [str(p) for p in (Path(self.build_lib) / "hunyuan_kernels").glob("*.so")]


setup(
    version=VERSION,
    ext_modules=[Extension("hunyuan_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
