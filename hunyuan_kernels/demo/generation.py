"""The trained model in use: written and read again as a checkpoint, then generating."""

import tempfile
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from hunyuan_kernels.demo.experiment import Check, set_fp8
from hunyuan_kernels.model import Decoder, Generated, checkpoint, generate

PROMPTS, PROMPT_LENGTH, NEW_TOKENS, DRAFT = 4, 96, 64, 8


@dataclass(frozen=True)
class Speed:
    """One way to generate, and what it took. Includes the prompts."""

    name: str
    tokens_per_second: float
    tokens_per_step: float


@torch.no_grad()
def use(model: Decoder, windows: Tensor) -> tuple[list[Check], list[Speed]]:
    """Checks of the checkpoint and of parallel decoding, and the speed of each way to generate."""
    prompts = windows[:: max(1, len(windows) // PROMPTS), :PROMPT_LENGTH][:PROMPTS].tolist()
    speeds: list[Speed] = []

    def run(name: str, runner: Decoder, draft: int = 0, cache_dtype: torch.dtype | None = None) -> Generated:
        start = time.perf_counter()
        made = generate(runner, prompts, NEW_TOKENS, draft=draft, cache_dtype=cache_dtype)
        seconds = time.perf_counter() - start
        speeds.append(Speed(name, sum(map(len, made.tokens)) / seconds, made.tokens_per_step))
        return made

    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(model, folder)
        read, bf16 = checkpoint.load(folder), checkpoint.load(folder, dtype=torch.bfloat16)
    x = torch.tensor(prompts)
    difference = float((read(x).logits - model.eval()(x).logits).abs().max())
    plain = run("fp32", read)
    drafted = run("fp32, parallel decoding", read, DRAFT)
    run("bf16", bf16)
    set_fp8(bf16, "none")
    run("bf16, FP8 experts and cache", bf16, 0, torch.float8_e4m3fn)
    run("bf16, FP8 experts and cache, parallel decoding", bf16, DRAFT, torch.float8_e4m3fn)
    same = sum(a == b for a, b in zip(plain.tokens, drafted.tokens, strict=True))
    required = f"{len(prompts)} of {len(prompts)}"
    checks = [
        Check("checkpoint written and read: logits differ by", f"{difference:g}", "0", difference == 0),
        Check(
            "parallel decoding: texts equal to greedy ones",
            f"{same} of {len(prompts)}",
            required,
            same == len(prompts),
        ),
    ]
    return checks, speeds
