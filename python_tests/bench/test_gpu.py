"""bench/gpu without a GPU: order, failures, time limits and files of the steps; the ops' part, on the CPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import ops
from bench.gpu.conformance.target import gpu_missing
from bench.gpu.published import published
from bench.gpu.steps import Step, plan, run_step, run_steps, table, to_json
from hunyuan_kernels.testing.spec import all_specs

ROOT = Path(__file__).resolve().parents[2]
no_gpu = pytest.mark.skipif(not gpu_missing(), reason="this machine has a GPU to run on")


def python(name, code, limit=60.0, **options):
    return Step(name, (sys.executable, "-c", code), limit, **options)


def test_order():
    names = [step.name for step in plan()]
    tools = [f"sanitizer {tool}" for tool in ("memcheck", "racecheck", "synccheck", "initcheck")]
    assert names == ["conformance", "ops", "tests", *tools, "benches"]
    assert all(step.limit > 0 for step in plan())


def test_a_step_that_fails_does_not_stop_the_rest(tmp_path):
    told = []
    steps = [
        python("first", "print('fine')"),
        python("second", "print('why'); raise SystemExit(3)"),
        Step("third", ("/nowhere/program",), 5.0),
        python("fourth", "", needs="no-such-program"),
        Step(
            "fifth",
            (sys.executable, "-c", "import os; open(os.environ['FILE'], 'w').write('{out}')"),
            60.0,
            environment={"FILE": "written"},
        ),
    ]
    results = run_steps(steps, tmp_path / "out", tmp_path, told.append)
    assert [r.status for r in results] == ["passed", "failed", "failed", "missing", "passed"]
    assert (tmp_path / "out/first.log").read_text() == "fine\n"
    assert results[1].detail == "exit code 3; the end of second.log:\nwhy"
    assert "/nowhere/program" in results[2].detail
    assert "no-such-program is not on PATH" in results[3].detail
    assert (tmp_path / "written").read_text() == str(tmp_path / "out")
    assert told[0] == "first: at most 60 s"
    assert len(told) == 10
    text = table(results)
    assert "| second | failed |" in text
    assert "| fourth | missing |" in text
    assert [r["passed"] for r in json.loads(json.dumps(to_json(results)))] == [True, False, False, False, True]


def test_out_of_time_ends_all_that_was_started(tmp_path):
    child = "import time; time.sleep(600)"
    code = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
        "print(p.pid, flush=True); p.wait()"
    )
    result = run_step(python("slow", code, limit=3.0), tmp_path, tmp_path)
    assert result.status == "out of time"
    assert "no end after 3 s" in result.detail
    written = (tmp_path / "slow.log").read_text().split()
    for pid in written:  # the child, if the limit let it start
        for _ in range(100):
            state = Path(f"/proc/{pid}/stat")
            if not state.exists() or state.read_text().split()[2] in "ZX":
                break
            time.sleep(0.05)
        else:
            os.kill(int(pid), 9)
            raise AssertionError(f"process {pid} was left behind")


@pytest.mark.parametrize(("codes", "want"), [(("pass", "pass"), 0), (("raise SystemExit(1)", "pass"), 1)])
def test_command(monkeypatch, tmp_path, capsys, codes, want):
    """Results, table and exit code, as if there were a GPU."""
    monkeypatch.setattr(command, "gpu_missing", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(command, "plan", lambda: [python(f"step {i}", code) for i, code in enumerate(codes)])
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--out", str(tmp_path)])
    assert command.main() == want
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["machine"]["gpu"] == "a GPU"
    assert [step["step"] for step in results["steps"]] == ["step 0", "step 1"]
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--out", str(tmp_path), "--only", "step 7"])
    assert command.main() == 2
    assert "allowed: step 0, step 1" in capsys.readouterr().err


@no_gpu
def test_says_that_there_is_no_gpu(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--out", str(tmp_path / "out")], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 2
    assert gpu_missing() in result.stderr
    assert not (tmp_path / "out").exists()


def test_why_there_is_no_gpu(monkeypatch):
    from bench.gpu.conformance import target

    monkeypatch.setattr(target.driver, "cuda_device_count", lambda: 0)
    assert target.gpu_missing() == "the CUDA driver has no device"
    monkeypatch.setattr(target.driver, "cuda_device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch" in target.gpu_missing()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert target.gpu_missing() == "Some GPU has compute capability 8.0; Hopper, 9.0, is needed"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert target.gpu_missing() == ""


def spec_of(name):
    return next(spec for spec in all_specs() if spec.name == name)


def test_check_and_its_failures():
    spec = spec_of("quantize_fp8")
    outcome = ops.check(spec, "cpu", 3)
    assert (outcome.cases, outcome.failures, outcome.note) == (3, [], "")

    def wrong(**arguments):
        q, scale = spec.function(**arguments)
        return q, scale * 2

    broken = type(spec)(**{**vars(spec), "function": wrong})
    assert len(ops.check(broken, "cpu", 2).failures) == 2


def test_measure():
    """The op, its baselines, one that raises, and an op without a kernel."""
    spec = spec_of("quantize_fp8")

    def raises(**arguments):
        raise RuntimeError("no such kernel\nand more")

    case = spec.cases()[0]
    with_one = type(spec)(**{**vars(spec), "baselines": {**spec.baselines, "raises": raises}})
    rows = {row.what: row for row in ops.measure(with_one, case, "cpu", ops.wall_timer, 3)}
    assert rows["quantize_fp8"].times_op == 1.0
    assert rows["raises"].note == "no such kernel"
    assert rows["raises"].seconds is None

    def missing(**arguments):
        raise ops.MissingKernelError("none")

    without = type(spec)(**{**vars(spec), "function": missing})
    rows = {row.what: row for row in ops.measure(without, case, "cpu", ops.wall_timer, 3)}
    assert rows["quantize_fp8"].note == ops.NO_KERNEL
    assert any(row.seconds and row.times_op is None for row in rows.values())
    assert ops.NO_KERNEL in ops.table(rows.values())


def test_plan_options_are_measured_where_they_change_the_plan():
    spec, sms = spec_of("grouped_gemm"), 132
    few, many = (next(c for c in spec.bench_cases(None) if f" {rows} rows" in c.label) for rows in (1, 512))
    names = ["with multicast", "with column_panels", "with multicast, column_panels"]
    assert [name for name in ops.with_plan_options(spec, many, sms).baselines if name.startswith("with ")] == names
    assert "with column_panels" not in ops.with_plan_options(spec, few, sms).baselines
    rows = {row.what: row for row in ops.measure(ops.with_plan_options(spec, few, sms), few, "cpu", ops.wall_timer, 1)}
    assert rows["with multicast"].times_op
    assert ops.with_plan_options(spec_of("quantize_fp8"), few, sms) is spec_of("quantize_fp8")


def test_what_a_gpu_does_not_take_is_named():
    spec = spec_of("decoder_layer")
    outcome = ops.check(spec, "cpu")
    assert (outcome.cases, outcome.failures, outcome.note) == (0, [], ops.NOT_ON_CUDA)
    (row,) = ops.measure(spec, spec.cases()[0], "cpu", ops.wall_timer, 3)
    assert (row.seconds, row.note) == (None, ops.NOT_ON_CUDA)


def test_ceilings():
    rows = list(ops.ceilings("cpu", ops.wall_timer, 2, elements=1024, size=16))
    assert [row.case for row in rows] == ["copy", "bf16 product"]
    assert all(row.seconds and (row.flops_per_second or row.bytes_per_second) for row in rows)


def test_published_sizes():
    cases = list(published())
    assert len({(spec.name, case.label) for spec, case in cases}) == len(cases) == 25
    spec, case = min(cases, key=lambda each: each[0].name != "fp8_gemm")
    arguments = case.make(0)
    assert spec.on_cuda(arguments)
    assert spec.work(arguments).flops == 2.0 * 64 * 24576 * 1536
