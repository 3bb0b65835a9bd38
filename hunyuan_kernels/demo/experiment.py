"""What the demo does: two trainings that differ in the overflow alone, then FP8 experts, each with its check."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.demo.corpus import (
    Corpus,
    bigram_bits_per_byte,
    even_windows,
    model_bits_per_byte,
    random_batches,
)
from hunyuan_kernels.model import Config, Decoder
from hunyuan_kernels.model.train import Step, train

#: Held-out bits per byte of a trained model must lie this share below those of the bigram model.
BIGRAM_MARGIN = 0.20
#: FP8 experts may cost so many bits per byte: ten times what right ones were seen to change. Doubled scales of the down
#: projections of any one layer were seen to add 0.004 to 0.04.
FP8_LIMIT = 0.002

OVERFLOWS = ("drop", "recycle")
#: What is quantized, by the ``activations`` of :meth:`hunyuan_kernels.model.moe.MoE.quantized_experts`.
FP8_FORMS = {
    "none": "FP8 weights, one scale per matrix",
    "block_1x128": "FP8 weights and activations, in blocks",
}


@dataclass(frozen=True)
class Settings:
    """The defaults take about 80 CPU seconds per training on a server core with AVX2."""

    steps: int = 300
    seed: int = 0
    batch: int = 16
    length: int = 128
    learning_rate: float = 4e-3
    held_out_windows: int = 512


@dataclass(frozen=True)
class Check:
    """One statement that must hold for the demo to succeed."""

    name: str
    got: str
    required: str
    passed: bool


@dataclass(frozen=True)
class Run:
    """One training and what came of it."""

    overflow: str
    steps: list[Step]
    model: Decoder
    bits_per_byte: float
    seconds: float


@dataclass(frozen=True)
class Quantized:
    """Held-out bits per byte with FP8 experts."""

    name: str
    bits_per_byte: float
    check: Check


#: Called with a label, the step, the number of steps and the last :class:`Step`.
Progress = Callable[[str, int, int, Step], None]


def beats_bigram(name: str, bits: float, bigram: float) -> Check:
    """The model must have learned more than which byte follows which."""
    limit = (1 - BIGRAM_MARGIN) * bigram
    required = f"at most {limit:.3f}, {BIGRAM_MARGIN:.0%} below the bigram model's {bigram:.3f}"
    return Check(f"{name}: held-out bits per byte", f"{bits:.3f}", required, bits <= limit)


def keeps_quality(name: str, bits: float, exact: float) -> Check:
    """FP8 experts must predict about as well as those they were made of."""
    return Check(
        f"{name}: bits per byte added", f"{bits - exact:+.4f}", f"at most +{FP8_LIMIT}", bits - exact <= FP8_LIMIT
    )


def is_caught(check: Check) -> Check:
    """A check of something deliberately wrong must fail."""
    return Check(f"caught: {check.name}", check.got, "more than is allowed of a right one", not check.passed)


def recycling_checks(runs: list[Run]) -> list[Check]:
    """At a capacity factor of 1 there are as many free slots as tokens past the capacity, so recycling loses none."""
    checks = []
    for run in runs:
        dropped = sum(step.dropped for step in run.steps) / len(run.steps)
        recycles = run.overflow == "recycle"
        required = "none" if recycles else "some (or the comparison shows nothing)"
        checks.append(
            Check(f"{run.overflow}: tokens without an expert", f"{dropped:.1%}", required, (dropped == 0) == recycles)
        )
    return checks


def train_one(corpus: Corpus, windows: Tensor, settings: Settings, overflow: str, progress: Progress) -> Run:
    """One training; the same seed gives the same start and the same batches for any ``overflow``."""
    torch.manual_seed(settings.seed)
    model = Decoder(Config(overflow=overflow))
    batches = random_batches(corpus.training, settings.batch, settings.length, settings.seed)
    start = time.perf_counter()
    steps = []
    for step in train(model, batches, settings.steps, learning_rate=settings.learning_rate, seed=settings.seed):
        steps.append(step)
        progress(overflow, len(steps), settings.steps, step)
    seconds = time.perf_counter() - start
    return Run(overflow, steps, model, model_bits_per_byte(model, windows), seconds)


def set_fp8(model: Decoder, form: str | None) -> None:
    """Replaces the routed experts of every layer by FP8 ones; None: back to the trained ones."""
    for moe in model.moe_layers():
        moe.fp8 = None if form is None else moe.quantized_experts(form)


def with_a_wrong_scale(experts: hk.Fp8Experts) -> hk.Fp8Experts:
    """The scales of the down projections doubled: what a mix-up of two scales does to an otherwise right model."""
    return experts._replace(down_scale=2 * experts.down_scale)


def quantize(run: Run, windows: Tensor) -> list[Quantized]:
    """The experts of a trained model in FP8, in each form, and once with wrong scales in one layer."""
    results = []
    for form, name in FP8_FORMS.items():
        set_fp8(run.model, form)
        bits = model_bits_per_byte(run.model, windows)
        results.append(Quantized(name, bits, keeps_quality(name, bits, run.bits_per_byte)))
    set_fp8(run.model, "none")
    first = run.model.moe_layers()[0]
    first.fp8 = with_a_wrong_scale(first.quantized_experts("none"))
    bits = model_bits_per_byte(run.model, windows)
    name = "the first layer's scale doubled on purpose"
    results.append(Quantized(name, bits, is_caught(keeps_quality(name, bits, run.bits_per_byte))))
    set_fp8(run.model, None)
    return results


@dataclass(frozen=True)
class Results:
    """All that the demo measured."""

    settings: Settings
    bigram: float
    runs: list[Run]
    quantized: list[Quantized]
    #: Held-out text, ``[count, length + 1]``.
    windows: Tensor

    @property
    def checks(self) -> list[Check]:
        learned = [beats_bigram(run.overflow, run.bits_per_byte, self.bigram) for run in self.runs]
        return [*learned, *recycling_checks(self.runs), *(q.check for q in self.quantized)]


def run_experiment(corpus: Corpus, settings: Settings, progress: Progress) -> Results:
    """Both trainings, then the experts of the recycled one in FP8."""
    windows = even_windows(corpus.held_out, settings.held_out_windows, settings.length)
    runs = [train_one(corpus, windows, settings, overflow, progress) for overflow in OVERFLOWS]
    bigram = bigram_bits_per_byte(corpus.training, windows)
    return Results(settings, bigram, runs, quantize(runs[-1], windows), windows)
