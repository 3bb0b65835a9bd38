"""`hunyuan-kernels plot roofline`: points where the results are, and what is refused."""

import json

import pytest
from typer.testing import CliRunner

from hunyuan_kernels.cli import main
from hunyuan_kernels.cli.plot import roofline_figure

MACHINE = {"processor": "a CPU", "threads": 2, "commit": "abc"}


def result(op, flops, moved, seconds):
    return {
        "op": op,
        "work": {"flops": flops, "bytes": moved},
        "flops_per_second": flops / seconds,
        "ceiling": {"flops_per_second": 4e11, "bytes_per_second": 4e10},
    }


REPORT = {
    "machine": MACHINE,
    "results": [result("gemm", 2e9, 1e9, 0.05), result("gemm", 2e12, 1e9, 6.0), result("gather", 0, 1e9, 0.03)],
}


def run(*arguments):
    return CliRunner().invoke(main.app, ("plot", "roofline", *map(str, arguments)))


def test_points_and_roof():
    axes = roofline_figure(REPORT).axes[0]
    roof, gemm = axes.lines
    assert gemm.get_label() == "gemm"
    assert list(gemm.get_xdata()) == pytest.approx([2.0, 2000.0])
    assert list(gemm.get_ydata()) == pytest.approx([0.04, 1 / 3])
    assert list(roof.get_xdata()) == pytest.approx([1.0, 10.0, 4000.0])
    assert list(roof.get_ydata()) == pytest.approx([0.04, 0.4, 0.4])


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_writes_an_image(tmp_path, suffix):
    source, target = tmp_path / "bench.json", tmp_path / f"picture.{suffix}"
    source.write_text(json.dumps(REPORT))
    outcome = run(source, "--output", target)
    assert outcome.exit_code == 0, outcome.output
    assert target.stat().st_size > 1000
    assert run(source).output.strip() == str(tmp_path / "bench.svg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("{", "cannot read"),
        ("[]", "holds no results"),
        (json.dumps(REPORT | {"results": REPORT["results"][2:]}), "no result has arithmetic"),
    ],
)
def test_bad_files(tmp_path, text, message):
    source = tmp_path / "bench.json"
    if text is not None:
        source.write_text(text)
    outcome = run(source)
    assert outcome.exit_code == 2
    assert message in outcome.stderr


def test_unwritable_and_unknown_formats(tmp_path):
    source = tmp_path / "bench.json"
    source.write_text(json.dumps(REPORT))
    for target in (tmp_path / "missing" / "a.svg", tmp_path / "a.docx"):
        outcome = run(source, "--output", target)
        assert outcome.exit_code == 2
        assert str(target) in outcome.stderr
