"""The map holds: one stem everywhere, dependencies downward, no file too long (docs/map.md, design of the tree)."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STEMS = ("routing", "dispatch", "grouped_gemm", "fp8_gemm", "nf4_gemm", "prepack", "quantize", "swiglu", "moe")
ROOMS = (
    "hunyuan_kernels/ops/{}.py",
    "hunyuan_kernels/reference/{}.py",
    "hunyuan_kernels/testing/specs/{}.py",
    "csrc/bindings/{}.cpp",
    "csrc/cpu/{}.cpp",
    "csrc/cpu/isa/{}.inl",
    "csrc/host/{}.cpp",
    "csrc/kernels/{}_sm90.cu",
    "python_tests/ops/test_{}.py",
    "bench/bench_{}.py",
)
NO_CUDA_YET = "its CUDA kernels are not written yet; on CUDA tensors the op raises"
#: Rooms that a stem does without, and why.
MISSING = {
    **{
        room.format(stem): NO_CUDA_YET
        for stem in ("nf4_gemm",)
        for room in ("csrc/host/{}.cpp", "csrc/kernels/{}_sm90.cu")
    },
    **{
        room.format("prepack"): "packed weights are for CPUs"
        for room in ("csrc/host/{}.cpp", "csrc/kernels/{}_sm90.cu")
    },
    **{
        room.format("moe"): "on a GPU the layer is composed of other operators"
        for room in ("csrc/host/{}.cpp", "csrc/kernels/{}_sm90.cu")
    },
    "csrc/cpu/isa/moe.inl": "it is made of grouped GEMMs, whose microkernels it runs",
    "csrc/cpu/isa/grouped_gemm.inl": "its microkernels are those of the GEMM core, isa/gemm.inl, and isa/swiglu.inl",
    "csrc/cpu/isa/fp8_gemm.inl": "e4m3 is one more element type of the GEMM core's microkernels, isa/gemm.inl",
}
SOURCES = sorted(
    path
    for folder in ("csrc", "hunyuan_kernels", "python_tests", "bench")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".cpp", ".h", ".inl", ".cu", ".cuh", ".py"}
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("stem", STEMS)
def test_every_stem_has_its_rooms(stem):
    for room in ROOMS:
        path = room.format(stem)
        exists = (ROOT / path).is_file()
        assert exists or path in MISSING, f"{path} is missing and no reason is stated"
        assert not (exists and path in MISSING), f"{path} exists: its reason to be missing is out of date"


def test_every_operator_belongs_to_a_stem():
    found = {path.stem for path in (ROOT / "hunyuan_kernels/ops").glob("*.py")} - {"__init__"}
    assert found == set(STEMS)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_file_is_over_500_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


#: What the files of each folder of csrc/ may include from other folders.
MAY_INCLUDE = {
    "common": set(),
    "arch": set(),
    "tile": {"arch"},
    "kernels": {"tile", "arch", "common"},
    "simulator": set(),
    "driver": {"common", "simulator"},
    "host": {"driver", "kernels", "common"},
    "cpu": {"common"},
    "bindings": {"cpu", "host", "driver", "simulator", "common"},
}


def test_dependencies_run_downward():
    for path in (p for p in SOURCES if p.is_relative_to(ROOT / "csrc")):
        folder = path.relative_to(ROOT / "csrc").parts[0]
        for included in re.findall(r'^#include "(.+)"', path.read_text(encoding="utf-8"), re.M):
            target = included.split("/")[0] if "/" in included else folder
            assert target == folder or target in MAY_INCLUDE[folder], f"{name(path)} includes {included}"


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"#include <torch/", r"csrc/bindings/"),
        (r"#include <(immintrin|arm_neon)\.h>|\b_mm\d*_", r"csrc/cpu/isa/"),
        (r"\basm\b *(volatile)? *\(", r"csrc/arch/|csrc/cpu/isa/|python_tests/"),
        (r"\bstd::", r"csrc/(?!cpu/isa/)|python_tests/"),
    ],
    ids=["torch headers", "intrinsics", "assembly", "standard library"],
)
def test_what_is_written_in_one_room_only(pattern, allowed):
    """No std templates in cpu/isa: a template compiled for AVX-512 could be linked into the portable path."""
    cpp = [p for p in SOURCES if p.suffix != ".py"]
    code = {name(p): re.sub(r"//.*", "", p.read_text(encoding="utf-8")) for p in cpp}
    found = [path for path, text in code.items() if re.search(pattern, text)]
    assert found, f"nothing matches {pattern}: this test shows nothing"
    assert [p for p in found if not re.match(allowed, p)] == []
