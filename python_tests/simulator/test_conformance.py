"""The conformance suite: every family on the simulator, and on a GPU where there is one; and that it can fail."""

import json
import os
import shutil
import subprocess
import time
from functools import partial

import pytest
import torch

from bench.gpu.conformance import suite, wgmma
from bench.gpu.conformance.case import Case, difference
from bench.gpu.conformance.code import MissingCodeError, ptx_of
from bench.gpu.conformance.suite import all_cases, judge, run_in_worker, run_suite, summary
from bench.gpu.conformance.target import Target, gpu_missing

CASES = all_cases()
FAMILIES = list(dict.fromkeys(case.family for case in CASES))


def indices(family):
    return [i for i, case in enumerate(CASES) if case.family == family]


def need_code(family=""):
    """wgmma's PTX is generated; nvcc makes the rest."""
    if family.startswith(("wgmma", "fp8 accumulation")):
        return
    try:
        ptx_of("copies.cu")
    except MissingCodeError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("family", FAMILIES)
def test_simulator(family):
    need_code(family)
    problems = [p for verdict in run_suite(indices(family), gpu=False) for p in verdict.problems]
    assert problems == []


def test_gpu():
    if missing := gpu_missing():
        pytest.skip(f"no GPU to compare with: {missing}")
    need_code()
    problems = [p for verdict in run_suite(range(len(CASES)), gpu=True) for p in verdict.problems]
    assert problems == []


def test_every_wgmma_is_there():
    """Every N of every type, K-major, from shared memory; every pair of swizzles and majors of bf16."""
    names = {case.name for case in CASES if case.family == "wgmma"}
    for accumulator, a, b in wgmma.TYPES:
        for n in wgmma.sizes(accumulator):
            assert any(name.startswith(f"n{n}_{accumulator}_{a}_{b}_kk ") for name in names)
    for majors in ("kk", "km", "mk", "mm"):
        for one in wgmma.SWIZZLES:
            for other in wgmma.SWIZZLES:
                assert any(f"bf16_{majors} swizzles {one},{other}" in name for name in names)
    # The manual's list for integers.
    assert wgmma.sizes("s32") == [8, 16, 24, 32, *range(48, 257, 16)]


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="no ptxas on PATH to assemble the generated PTX")
def test_the_generated_ptx_assembles(tmp_path):
    """The assembler is stricter than the simulator. One N of each type stands for the others."""
    module = wgmma.HEAD + "\n".join(form.ptx() for form in wgmma.forms() if form.n == 64)
    (tmp_path / "wgmma.ptx").write_text(module)
    command = ["ptxas", "-arch=sm_90a", str(tmp_path / "wgmma.ptx"), "-o", str(tmp_path / "wgmma.cubin")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("change", "index"),
    [
        (("place", lambda place: lambda m, swizzle, major: place(m, 64 if swizzle == 128 else swizzle, major)), 0),
        (("a_fragment", lambda f: lambda m: f(m).roll(1, 0)), 1),
        (("to_registers", lambda f: lambda form, tile: f(form, tile.roll(1, 1))), 0),
    ],
    ids=["swizzle", "A fragment", "accumulators"],
)
def test_another_layout_is_noticed(monkeypatch, change, index):
    """An oracle that puts elements elsewhere for one half of the comparison does not agree."""
    forms = [wgmma.Form("f32", "bf16", "bf16", 64), wgmma.Form("f32", "bf16", "bf16", 64, a_registers=True)]
    case = wgmma.exact_case(forms[index], (128, 128), False, 0)
    want = case.want()
    name, wrap = change
    original = getattr(wgmma, name)
    if name == "place":
        # The bytes of one swizzle under the descriptor of another.
        changed = wrap(original)
        monkeypatch.setattr(wgmma, name, lambda *args: (changed(*args)[0], original(*args)[1]))
        got = case.run(Target.simulated())
    elif name == "a_fragment":
        monkeypatch.setattr(wgmma, name, wrap(original))
        got = case.run(Target.simulated())
    else:
        got = case.run(Target.simulated())
        monkeypatch.setattr(wgmma, name, wrap(original))
        want = case.want()
    assert "wrong" in difference(case, got, want)


def test_negative_zero_and_devices_that_differ_are_noticed():
    case = Case("family", "case", lambda target: {}, dict)
    plus, minus = {"x": torch.zeros(2)}, {"x": torch.tensor([0.0, -0.0])}
    assert "x[1]" in difference(case, plus, minus)
    loose = Case("family", "case", lambda target: {}, dict, "order of sums", 1e-3)
    near, far, nan = ({"x": torch.tensor([1.0, value])} for value in (1.0005, 1.002, float("nan")))
    ones = {"x": torch.ones(2)}
    assert difference(loose, near, ones) == ""
    assert difference(loose, far, ones)
    assert difference(loose, nan, ones)
    verdict = judge(loose, {"simulator": ones, "GPU": near}, ones)
    assert verdict.problems == []
    assert verdict.deviation == pytest.approx(5e-4, rel=1e-3)
    verdict = judge(case, {"simulator": plus, "GPU": "it hangs"}, plus)
    assert verdict.problems == ["GPU: it hangs"]


@pytest.mark.parametrize("bits", [12, 14])
def test_only_accumulation_depends_on_the_bits_of_fp8_accumulators(bits):
    """Bits are compared where they do not hang on what is not documented: a GPU that keeps 12 bits would pass, too."""
    cases = [c for c in CASES if c.family == "wgmma" and c.name.startswith(("n64_f32_e", "n256_f32_e", "n64_f16_e"))]
    assert len(cases) > 60
    for case in cases:
        assert difference(case, case.run(Target.simulated(fp8_accumulator_bits=bits)), case.want()) == "", case.name
    if bits == 14:
        for case in (c for c in CASES if c.family in ("fp8 accumulation", "wgmma rounding")):
            exact, cut = (case.run(Target.simulated(fp8_accumulator_bits=b)) for b in (0, bits))
            verdict = judge(case, {"simulator": exact, "GPU": cut}, case.want())
            assert verdict.problems == []
            assert (verdict.deviation > 0) == ("e4m3" in case.name or "e5m2" in case.name or "fp8" in case.family)


def test_two_devices(monkeypatch):
    """The whole way to the second device and back, which here is another simulated one."""
    need_code()
    worker = partial(run_in_worker, make_target=Target.simulated)
    monkeypatch.setattr(suite, "run_in_worker", worker)
    verdicts = list(run_suite([*indices("clusters"), *indices("approximations")], gpu=True))
    assert [v.problems for v in verdicts] == [[], []]
    assert [v.devices for v in verdicts] == [["simulator", "GPU"]] * 2
    assert [v.deviation for v in verdicts] == [None, 0.0]
    text = summary(verdicts, 1.0)
    assert "| clusters | 1 | 0 | simulator, GPU | compared |" in text
    assert "2 cases, 0 failed" in text
    assert json.dumps([v.to_json() for v in verdicts])


def worker_cases():
    def crash(target):
        os._exit(3)

    def hang(target):
        time.sleep(600)

    def work(target):
        return {"x": torch.ones(1)}

    return [Case("worker", name, run, dict) for name, run in (("works", work), ("crashes", crash), ("hangs", hang))]


def test_what_crashes_or_hangs_does_not_stop_the_rest():
    results = list(run_in_worker([1, 0, 2], worker_cases, Target.simulated, patience=1.0))
    assert results[0] == "the process ended with code 3"
    assert torch.equal(results[1]["x"], torch.ones(1))
    assert "it hangs" in results[2]
