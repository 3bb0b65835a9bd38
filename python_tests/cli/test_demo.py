"""The demo: its checks fail when they should, its numbers mean what they say, and the command runs from end to end."""

import json
import math
import re
import sys

import pytest
import torch
from typer.testing import CliRunner

from hunyuan_kernels.cli import demo as command
from hunyuan_kernels.cli.main import app
from hunyuan_kernels.demo import corpus, experiment, report
from hunyuan_kernels.model import Config, Decoder
from hunyuan_kernels.model.train import Step

TINY = Config(hidden_size=32, num_layers=2, num_heads=2, num_key_value_heads=1, head_dim=16, intermediate_size=32)


# ---- the text -------------------------------------------------------------------------------------------------------


def test_standard_library():
    text = corpus.standard_library()
    assert len(text.training) > 5 * len(text.held_out) > 100_000
    assert torch.equal(text.training, corpus.standard_library().training)
    beginning = bytes(text.held_out[:200].tolist())
    assert beginning not in bytes(text.training.tolist())


def test_a_python_without_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(RuntimeError, match="has 0 source files of the standard library; at least 10"):
        corpus.standard_library()


def test_batches_are_pieces_of_the_text():
    text = torch.arange(100, dtype=torch.uint8)
    batch = next(corpus.random_batches(text, 5, 8, seed=1))
    assert batch.shape == (5, 9)
    assert torch.equal(batch - batch[:, :1], torch.arange(9).expand(5, 9))
    assert torch.equal(batch, next(corpus.random_batches(text, 5, 8, seed=1)))
    windows = corpus.even_windows(text, 4, 9)
    assert windows[:, 0].tolist() == [0, 30, 60, 90]
    assert windows.shape == (4, 10)


def test_bigram_bits_per_byte():
    text = torch.tensor([65, 66] * 5000, dtype=torch.uint8)  # after A always B
    assert corpus.bigram_bits_per_byte(text, corpus.even_windows(text, 10, 20)) < 0.01
    noise = torch.randint(0, 256, (300_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    other = torch.randint(0, 256, (20, 500), generator=torch.Generator().manual_seed(1))
    assert corpus.bigram_bits_per_byte(noise, other) == pytest.approx(8, abs=0.4)  # what is lost: counts are few
    unseen = torch.full((1, 3), 7)
    assert corpus.bigram_bits_per_byte(text, unseen) == pytest.approx(math.log2(len(text) + 256))


def test_model_bits_per_byte():
    torch.manual_seed(0)
    model = Decoder(TINY)
    torch.nn.init.zeros_(model.embed_tokens)  # all logits 0: every byte equally likely
    windows = torch.randint(0, 256, (5, 17))
    assert corpus.model_bits_per_byte(model, windows, batch=2) == pytest.approx(8)


# ---- the checks -----------------------------------------------------------------------------------------------------


def test_no_better_than_bigram_fails():
    assert experiment.beats_bigram("a", 2.8, 3.5).passed
    assert not experiment.beats_bigram("a", 2.81, 3.5).passed
    assert not experiment.beats_bigram("a", 3.5, 3.5).passed
    assert not experiment.beats_bigram("a", float("nan"), 3.5).passed


def test_quality_lost_fails():
    assert experiment.keeps_quality("a", 2.40, 2.40).passed
    assert experiment.keeps_quality("a", 2.39, 2.40).passed
    lost = experiment.keeps_quality("a", 2.40 + 2 * experiment.FP8_LIMIT, 2.40)
    assert not lost.passed
    assert not experiment.keeps_quality("a", float("nan"), 2.40).passed
    assert experiment.is_caught(lost).passed
    assert not experiment.is_caught(experiment.keeps_quality("a", 2.40, 2.40)).passed


def run_of(overflow, dropped, recycled):
    step = Step(loss=1.0, balance_loss=1.0, dropped=dropped, recycled=recycled, demand=torch.ones(2, 16))
    return experiment.Run(overflow, [step] * 3, Decoder(TINY), 2.0, 1.0)


def test_recycling_must_lose_no_token():
    def passed(*runs):
        return [check.passed for check in experiment.recycling_checks(list(runs))]

    assert passed(run_of("drop", 0.2, 0.0), run_of("recycle", 0.0, 0.2)) == [True, True]
    assert passed(run_of("drop", 0.0, 0.0), run_of("recycle", 0.01, 0.2)) == [False, False]


@pytest.fixture(scope="module")
def trained():
    """A model for which its experts matter, on a text in which every byte follows from the one before."""
    text = (torch.arange(20_000) * 7 % 251).to(torch.uint8)
    windows = corpus.even_windows(text, 16, 32)
    settings = experiment.Settings(steps=120, batch=8, length=32, learning_rate=1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "Config", lambda **changes: Config(**{**vars(TINY), **changes}))
        run = experiment.train_one(corpus.Corpus(text, text), windows, settings, "recycle", lambda *_: None)
    return run, windows


def test_a_wrong_scale_is_caught(trained):
    run, windows = trained
    assert run.bits_per_byte < 1
    *right, wrong = experiment.quantize(run, windows)
    assert [q.check.passed for q in right] == [True, True]
    assert wrong.check.passed, wrong.check
    assert all(moe.fp8 is None for moe in run.model.moe_layers()), "the model keeps the experts it was trained with"


def test_a_wrong_scale_that_makes_no_difference_fails(trained, monkeypatch):
    run, windows = trained
    monkeypatch.setattr(experiment, "with_a_wrong_scale", lambda experts: experts)
    assert not experiment.quantize(run, windows)[-1].check.passed


# ---- the command ----------------------------------------------------------------------------------------------------


def run_demo(*arguments):
    return CliRunner().invoke(app, ["demo", *arguments])


@pytest.fixture
def small(monkeypatch):
    """A model and a text that take seconds, and no check of all ops."""
    text = corpus.standard_library()
    monkeypatch.setattr(experiment, "Config", lambda **changes: Config(**{**vars(TINY), **changes}))
    monkeypatch.setattr(command, "Settings", lambda **given: experiment.Settings(held_out_windows=16, **given))
    monkeypatch.setattr(command, "standard_library", lambda: text)
    monkeypatch.setattr(command, "_ops_agree", lambda: experiment.Check("ops", "no difference", "none", True))


@pytest.mark.usefixtures("small")
def test_too_few_steps_fail_and_say_why(tmp_path):
    result = run_demo("--steps", "2", "--out", str(tmp_path / "new" / "out"))
    assert result.exit_code == 1
    assert "drop: held-out bits per byte" in result.stderr
    assert "20% below the bigram model's" in result.stderr
    assert "\x1b" not in result.output, "control characters in what is not a terminal"
    written = json.loads((tmp_path / "new/out/demo.json").read_text())
    assert written["settings"]["steps"] == 2
    assert len(written["runs"]["recycle"]["loss"]) == 2
    assert {check["passed"] for check in written["checks"]} == {True, False}
    assert (tmp_path / "new/out/demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("small")
def test_success(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment.Results, "checks", [experiment.Check("all", "good", "good", True)])
    assert run_demo("--steps", "1", "--out", str(tmp_path)).exit_code == 0
    monkeypatch.setattr(command, "_ops_agree", lambda: experiment.Check("ops", "differences", "none", False))
    result = run_demo("--steps", "1", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "demo: ops: differences; required: none" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps.*greater than or equal to 1"),
        (["--steps", "many"], "--steps.*valid integer"),
        (["--seed", "-1"], "--seed.*greater than or equal to 0"),
    ],
)
def test_bad_arguments(arguments, message):
    result = run_demo(*arguments)
    assert result.exit_code == 2
    assert re.search(message, result.stderr)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    result = run_demo("--out", str(tmp_path / "file" / "out"))
    assert result.exit_code == 2
    assert f"cannot write to --out {tmp_path / 'file' / 'out'}: Not a directory" in result.stderr


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, report.__name__)
    monkeypatch.delattr("hunyuan_kernels.demo.report")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run_demo("--out", str(tmp_path))
    assert result.exit_code == 2
    assert "matplotlib is missing: pip install 'hunyuan-kernels[cli]'" in result.stderr
