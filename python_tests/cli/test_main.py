"""The command line, in this process and once for real."""

import dataclasses
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hunyuan_kernels.cli import main
from hunyuan_kernels.testing.compare import Comparison
from hunyuan_kernels.testing.spec import all_specs


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


def test_check_passes_and_fails(monkeypatch):
    assert run("check", "quantize_fp8").exit_code == 0
    spec = next(spec for spec in all_specs() if spec.name == "quantize_fp8")
    failing = dataclasses.replace(spec, compare=lambda *_: [Comparison(False, "made to fail", 1.0, 2.0)])
    monkeypatch.setattr(main, "all_specs", lambda: iter([failing]))
    result = run("check")
    assert result.exit_code == 1
    assert "made to fail" in result.output


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
