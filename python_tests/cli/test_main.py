"""The command line, in this process and once for real."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import hunyuan_kernels as hk
from hunyuan_kernels.cli import common, main
from hunyuan_kernels.testing import harmless
from hunyuan_kernels.testing.compare import Comparison
from hunyuan_kernels.testing.simulated import SETTINGS
from hunyuan_kernels.testing.spec import all_specs
from python_tests.backends import needs_device_code


def run(*arguments):
    return CliRunner().invoke(main.app, arguments)


def test_doctor_says_what_runs():
    result = run("doctor")
    assert result.exit_code == 0
    assert main.ops.instruction_set() in result.output


def test_doctor_notices_another_build(monkeypatch):
    monkeypatch.setattr(main, "__version__", "99.0")
    result = run("doctor")
    assert result.exit_code == 1
    assert "build again" in result.output


def test_list_names_every_op():
    result = run("list")
    assert result.exit_code == 0
    for spec in all_specs():
        assert spec.name in result.output
    assert "out[r] = x[routing.token_ids[r]]" in result.output, "brackets taken for markup"
    assert "Adds the weight gradient of :func:`grouped_gemm` in place" in result.output


def one_wrong_bit(**arguments):
    out = hk.dispatch(**arguments)
    if out.numel():
        out.view(torch.uint8)[0, 0] ^= 1
    return out


def test_check_passes_and_fails(monkeypatch):
    assert run("check", "quantize_fp8").exit_code == 0
    spec = next(spec for spec in all_specs() if spec.name == "dispatch")
    failing = dataclasses.replace(spec, function=one_wrong_bit)
    monkeypatch.setattr(common, "all_specs", lambda: iter([failing]))
    result = run("check")
    assert result.exit_code == 1
    assert "dispatch on portable [one token, H 1, bfloat16] seed 0: rows: 1 of 1 elements differ" in result.output


@needs_device_code
def test_check_on_a_simulated_gpu(monkeypatch):
    spec = next(spec for spec in all_specs() if spec.name == "quantize_fp8")
    few = dataclasses.replace(spec, cases=lambda: spec.cases()[:3])
    unported = next(spec for spec in all_specs() if spec.name == "nf4_linear")
    monkeypatch.setattr(common, "all_specs", lambda: iter([few, unported]))
    result = run("check", "--simulate", "--seeds", "2")
    assert result.exit_code == 0
    for setting in SETTINGS:
        assert setting in result.output
    assert "not simulated: nf4_linear has no CUDA kernel" in result.output
    result = run("check", "nf4_linear", "--simulate")
    assert result.exit_code == 2
    assert "--simulate: nf4_linear: runs on the CPU only" in result.output
    failing = dataclasses.replace(few, compare=lambda *_: [Comparison(False, "made to fail", 1.0, 2.0)])
    monkeypatch.setattr(common, "all_specs", lambda: iter([failing]))
    result = run("check", "--simulate")
    assert result.exit_code == 1
    assert "made to fail" in result.output


@needs_device_code
def test_mutants_of_an_op(monkeypatch):
    spec = next(spec for spec in all_specs() if spec.name == "quantize_fp8")
    few = dataclasses.replace(
        spec, cases=lambda: [case for case in spec.cases() if case.label == "129x257 tensor bfloat16"]
    )
    others = [spec for spec in all_specs() if spec.name in ("nf4_linear", "moe")]
    monkeypatch.setattr(common, "all_specs", lambda: iter([few, *others]))
    result = run("check", "--simulate", "--mutate")
    assert result.exit_code == 0
    assert "quantize_fp8: 6 mutants, 4 caught, 2 harmless, 0 survived without an explanation" in result.output
    assert "survived, harmless: the next launch of the stream begins later" in " ".join(result.output.split())
    assert "finding: quantize_fp8: data race on shared address" in result.output
    assert "nf4_linear: not simulated: nf4_linear has no CUDA kernel" in result.output
    assert "moe: composed of other ops" in result.output

    result = run("check", "nf4_linear", "--simulate", "--mutate")
    assert result.exit_code == 2
    assert "--mutate: nf4_linear: runs on the CPU only" in result.output

    monkeypatch.setattr(harmless.judge, "__defaults__", ((),))
    result = run("check", "quantize_fp8", "--simulate", "--mutate")
    assert result.exit_code == 1
    assert re.search(r"PTX line \d+: nothing catches the mutant of griddepcontrol.launch_dependents;", result.output)

    stale = harmless.Harmless(".*", r"bar\.sync 0;", 1, "no reason")
    monkeypatch.setattr(harmless.judge, "__defaults__", ((*harmless.HARMLESS, stale),))
    result = run("check", "quantize_fp8", "--simulate", "--mutate")
    assert result.exit_code == 1
    assert "quantize_fp8: stale explanation in testing/harmless.py: quantize_tensor_bfloat16_any: 1" in result.output

    wrong = dataclasses.replace(few, compare=lambda *_: [Comparison(False, "made to fail", 1.0, 2.0)])
    monkeypatch.setattr(common, "all_specs", lambda: iter([wrong]))
    result = run("check", "--simulate", "--mutate")
    assert result.exit_code == 1
    assert "quantize_fp8: a case fails without any mutation: [129x257 tensor bfloat16] made to fail" in result.output


def test_mutants_are_simulated():
    result = run("check", "quantize_fp8", "--mutate")
    assert result.exit_code == 2
    assert "--mutate: kernels are mutated on a simulated GPU; add --simulate" in result.output


@needs_device_code
def test_counters_of_each_launch(monkeypatch):
    spec = next(spec for spec in all_specs() if spec.name == "quantize_fp8")
    small = dataclasses.replace(
        spec, bench_cases=lambda preset: [case for case in spec.cases() if "256x128" in case.label]
    )
    monkeypatch.setattr(common, "all_specs", lambda: iter([small]))
    result = run("counters", "quantize_fp8")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 2 * (2 + 1 + 1 + 1), "two launches for `tensor`, one for each other recipe, two dtypes"
    row = next(line for line in lines if "`quantize_row_bfloat16`" in line).split("|")
    assert [float(cell) for cell in row[5:7]] == [1.0, 1.0]
    assert 1.0 < float(row[7]) < 1.1, "a row's scale is 4 bytes of a sector"


def test_counters_of_an_op_without_kernels():
    result = run("counters", "nf4_linear")
    assert result.exit_code == 1
    assert "hunyuan-kernels: nf4_linear: runs on the CPU only" in result.output


@pytest.mark.parametrize("name", ["quantize", "nothing"])
def test_unknown_op(name):
    result = run("check", name)
    assert result.exit_code == 2
    assert f"unknown op '{name}'; allowed:" in result.output


def test_as_a_program():
    result = subprocess.run(
        [sys.executable, "-m", "hunyuan_kernels", "list"], capture_output=True, text=True, check=True
    )
    assert "grouped_gemm" in result.stdout
    assert "\x1b" not in result.stdout, "control characters in what is not a terminal"


DOCS = Path(__file__).resolve().parents[2] / "docs/kernels"
# `counters OP`, or with a preset, and the lines of the table that follows.
TABLES = [
    (page.name, name, preset or None, table.splitlines())
    for page in sorted(DOCS.glob("*.md"))
    for name, preset, table in re.findall(
        r"`hunyuan-kernels counters (\w+)(?: --preset ([\w-]+))?`[^|]*\n\n((?:\|.*\n)+)", page.read_text()
    )
]


@needs_device_code
@pytest.mark.parametrize(("page", "name", "preset", "table"), TABLES, ids=lambda value: str(value)[:30])
def test_counters_in_the_docs_are_current(page, name, preset, table, monkeypatch):
    """All columns but the last, which depends on the version of nvcc; of routing and row movement the sizes that take
    little time."""
    spec = next(spec for spec in all_specs() if spec.name == name)
    few = [case for case in spec.bench_cases(preset) if not re.match(r"T[ =](8192|65536)\b", case.label)]
    monkeypatch.setattr(common, "all_specs", lambda: iter([dataclasses.replace(spec, bench_cases=lambda _: few)]))
    labels = [case.label for case in few]
    written = [line.split("|")[1:-2] for line in table if line.split("|")[1].strip() in labels]
    result = run("counters", name, *(["--preset", preset] if preset else []))
    assert written == [line.split("|")[1:-2] for line in result.output.splitlines()[2:]], page
    assert written


def test_every_page_of_a_kernel_has_counters():
    assert {page for page, *_ in TABLES} == {page.name for page in DOCS.glob("*.md")}


def test_counters_of_an_unknown_preset():
    result = run("counters", "dispatch", "--preset", "hunyuan")
    assert result.exit_code == 2
    assert "unknown preset 'hunyuan'; allowed: hunyuan-large, hunyuan-a13b." in result.output
