"""`hunyuan-kernels bench`: table, JSON, bad arguments; and the report on all ops."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from hunyuan_kernels.cli import bench, main
from hunyuan_kernels.testing.compare import Comparison
from hunyuan_kernels.testing.measure import Bench
from hunyuan_kernels.testing.spec import all_specs

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--seconds", "0.01", "--case", "row")


def run(*arguments):
    return CliRunner().invoke(main.app, ("bench", *arguments))


def spec_of(name):
    return next(spec for spec in all_specs() if spec.name == name)


def test_table():
    result = run("quantize_fp8", "--preset", "hunyuan-a13b", *QUICK)
    assert result.exit_code == 0, result.output
    for name, _ in bench.COLUMNS:
        assert name in result.output
    assert "4096x4096 row bfloat16" in result.output
    assert "torch eager" in result.output
    assert "block_1x128" not in result.output, "a case that was not asked for"


def test_json():
    result = run("quantize_fp8", "--json", "-", *QUICK)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["machine"]["torch"] == torch.__version__
    assert {"processor", "cores", "threads", "instruction_set", "hunyuan_kernels", "commit"} <= set(content["machine"])
    (row,) = content["results"]
    assert row["op"] == "quantize_fp8"
    assert row["dtype"] == "bfloat16"
    assert 0 < row["p20_s"] <= row["median_s"] <= row["p80_s"]
    assert row["bytes_per_second"] == pytest.approx(row["work"]["bytes"] / row["median_s"])
    assert row["best_baseline"] == "torch eager"
    assert row["speedup"] == pytest.approx(row["baselines"]["torch eager"]["median_s"] / row["median_s"])
    assert row["max_error"] == 0.0
    assert row["cache"] == "warm"
    if sys.platform == "linux":
        assert row["peak_memory_bytes"] > 0.9 * 4096 * 2048


def test_tokens_per_second():
    """A column for models alone; beside transformers, where ours inside of it is no baseline."""
    pytest.importorskip("transformers", reason="the package transformers is not installed")
    assert bench.TOKENS not in run("quantize_fp8", *QUICK).output
    result = run("decoder_layer", "--against", "transformers", "--seconds", "0.01", "--case", "T 1,")
    assert result.exit_code == 0, result.output
    assert bench.TOKENS in result.output
    spec = spec_of("decoder_layer")
    measured = Bench(seconds=0.01, against=("transformers",)).measure(spec, spec.bench_cases(None)[0])
    assert measured.best_baseline.startswith("transformers ")
    assert "ours in transformers" in measured.baselines
    assert measured.to_json()["tokens_per_second"] == pytest.approx(64 / measured.timing.median)
    assert measured.dtype == "bfloat16"


def test_json_into_a_file(tmp_path):
    file = tmp_path / "result.json"
    result = run("quantize_fp8", "--json", str(file), "--cold", *QUICK)
    assert result.exit_code == 0, result.output
    assert "cold caches" in result.output
    assert json.loads(file.read_text())["results"][0]["cache"] == "cold"
    missing = tmp_path / "missing" / "result.json"
    result = run("quantize_fp8", "--json", str(missing), *QUICK)
    assert result.exit_code == 2
    assert f"cannot write {missing}" in result.output


def test_threads():
    before = torch.get_num_threads()
    try:
        result = run("quantize_fp8", "--threads", "1", "--json", "-", *QUICK)
        assert json.loads(result.stdout)["machine"]["threads"] == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grouped_gem"], "unknown op 'grouped_gem'; allowed: dispatch, dispatch_fp8"),
        (["grouped_gem"], "Did you mean grouped_gemm?"),
        (["--preset", "hunyuan"], "unknown preset 'hunyuan'; allowed: hunyuan-large, hunyuan-a13b"),
        (["--against", "torch,zentorc"], "unknown provider 'zentorc'; allowed: torch, transformers, zentorch, vllm"),
        (["route", "--case", "nothing"], "unknown case 'nothing'; allowed: T=2048"),
        (["--threads", "0"], "--threads"),
        (["--seconds", "-1"], "--seconds"),
    ],
)
def test_bad_arguments(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_explain_shows_the_plans():
    result = run("grouped_gemm", "quantize_fp8", "--explain", "--case", "16 experts x 16 rows")
    assert result.exit_code == 0
    assert "grouped_gemm [16 experts x 16 rows, N 1024, K 512, bfloat16], 132 SMs\n" in result.output
    assert "tile 16 x 128 x 64, depth over 2: at most" in result.output
    assert result.output.count("<- taken") == 1
    assert "float32]: the CUDA kernels do not take it" in result.output
    result = run("quantize_fp8", "--explain")
    assert "]: no choice of kernels to explain" in result.output


def test_explain_takes_options_of_plans():
    asked = ("grouped_gemm", "--plan", "multicast", "--case", "16 experts x 512 rows")
    result = run(*asked, "--explain")
    assert "tile 128 x 256 x 64, rows to 2 blocks by multicast: at most" in result.output
    assert "multicast" not in run("grouped_gemm", "--explain", "--case", "16 experts x 512 rows").output
    result = run(*asked)
    assert (result.exit_code, "add --explain" in result.output) == (2, True)


def test_baselines_that_would_take_too_long_are_left_out():
    spec = spec_of("grouped_gemm")
    small, large = spec.bench_cases(None)[:2]
    settings = Bench(seconds=0.01, patience=1e-9)
    first, second = settings.measure(spec, small), settings.measure(spec, large)
    assert set(first.baselines) == set(spec.baselines)
    assert second.baselines == {}
    assert second.speedup is None
    assert all("would take about" in reason for reason in second.left_out.values())


def test_the_reason_why_a_baseline_is_left_out():
    def refuse(**_):
        raise NotImplementedError("it would copy 200 GiB")

    spec = spec_of("quantize_fp8")
    changed = dataclasses.replace(spec, baselines={**spec.baselines, "copies": refuse})
    measured = Bench(seconds=0.01).measure(changed, spec.bench_cases(None)[0])
    assert measured.left_out == {"copies": "it would copy 200 GiB"}
    assert set(measured.baselines) == set(spec.baselines)


def test_other_libraries_are_asked_for(monkeypatch):
    """Those that are installed run, for the others the reason says how to get them."""
    spec = spec_of("experts_from_ids")
    case = spec.bench_cases(None)[0]
    assert set(Bench(seconds=0.01).measure(spec, case).baselines) == set(spec.baselines)
    monkeypatch.setitem(sys.modules, "zentorch", None)  # importing it fails
    measured = Bench(seconds=0.01, against=("transformers", "zentorch")).measure(spec, case)
    assert {"transformers eager", "transformers grouped_mm"} <= set(measured.baselines)
    assert list(measured.left_out) == ["zentorch fused_moe"]
    assert "to get it: pip install zentorch" in measured.left_out["zentorch fused_moe"]
    measured = Bench(seconds=0.01, against=("vllm",)).measure(
        spec_of("quantize_fp8"), spec_of("quantize_fp8").bench_cases(None)[0]
    )
    assert measured.baselines == {}
    assert measured.left_out == {"vllm": "nothing of it is compared with this op"}


def test_naive_baselines_are_not_judged():
    measured = Bench(seconds=0.01).measure(spec_of("route"), spec_of("route").bench_cases(None)[0])
    naive = dataclasses.replace(measured.baselines["naive one-hot"], samples=(1e-9,))
    faster = dataclasses.replace(measured, baselines={**measured.baselines, "naive one-hot": naive})
    assert faster.best_baseline == "index-based"


def report(monkeypatch, specs):
    monkeypatch.setattr(bench, "all_specs", lambda: iter(specs))
    output = Console(file=io.StringIO(), width=200)
    return bench.op_report(output, seconds=0.01), output.file.getvalue()


def test_report(monkeypatch):
    passed, text = report(monkeypatch, [spec_of("route"), spec_of("quantize_fp8")])
    assert passed
    assert "naive one-hot" in text
    assert "not judged" in text
    wrong = dataclasses.replace(spec_of("quantize_fp8"), compare=lambda *_: [Comparison(False, "wrong", 1.0, 2.0)])
    passed, text = report(monkeypatch, [spec_of("route"), wrong])
    assert not passed
    assert "FAILED" in text


def test_every_file_in_bench_runs():
    command = [sys.executable, "-m", "pytest", "bench", "--smallest", "--benchmark-disable", "-q", "-rA"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    for spec in all_specs():
        passed = rf"PASSED .*bench_{spec.stem}\.py::test_{spec.stem}\[{spec.name}, "
        assert re.search(passed, result.stdout), f"nothing of {spec.name} ran"
