"""The text: Python's standard library, as bytes; and how well it is predicted, in bits per byte.

Bits per byte is the mean of ``-log2 p(byte | what is before it)``: the size of the text after ideal compression with
that model. 8 is no model at all.
"""

import math
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hunyuan_kernels.model import Decoder

#: Every tenth file is held out. Whole files, so that no text that the model has seen reaches into the other part.
HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Corpus:
    """Bytes (uint8 ``[N]``) to train on, and those held out."""

    training: Tensor
    held_out: Tensor


def standard_library() -> Corpus:
    """The top-level modules of the running Python's standard library, in alphabetical order.

    Only modules that every installation has (``sys.stdlib_module_names``): no build configuration of this machine.

    Raises:
        RuntimeError: the source files are not there.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in folder.glob("*.py") if path.stem in sys.stdlib_module_names)
    if len(files) < HELD_OUT_EVERY:
        raise RuntimeError(
            f"demo: {folder} has {len(files)} source files of the standard library; at least {HELD_OUT_EVERY} are "
            "needed: use a Python that is installed with its library as source"
        )
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for i, path in enumerate(files):
        parts[i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1].append(path.read_bytes())
    training, held_out = (torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8) for part in parts)
    return Corpus(training, held_out)


def random_batches(text: Tensor, batch: int, length: int, seed: int) -> Iterator[Tensor]:
    """Endless batches ``[batch, length + 1]`` int64 from random places of the text, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    pieces = text.unfold(0, length + 1, 1)
    while True:
        yield pieces[torch.randint(len(pieces), (batch,), generator=generator)].long()


def even_windows(text: Tensor, count: int, length: int) -> Tensor:
    """``[count, length + 1]`` int64: pieces that lie evenly over the whole text."""
    pieces = text.unfold(0, length + 1, 1)
    return pieces[torch.linspace(0, len(pieces) - 1, count).long()].long()


def bigram_bits_per_byte(training: Tensor, windows: Tensor) -> float:
    """Of a model that knows the byte before: counts of the training text, smoothed by the frequencies of single bytes.

    ``p(b | a) = (count(a, b) + p(b)) / (count(a) + 1)`` with ``p(b) = (count(b) + 1) / (N + 256)``. All bytes of each
    window ``[.., length + 1]`` but the first are predicted, as by :func:`model_bits_per_byte`.
    """
    text = training.long()
    pairs = torch.bincount(256 * text[:-1] + text[1:], minlength=256 * 256).view(256, 256).double()
    single = (torch.bincount(text, minlength=256).double() + 1) / (len(text) + 256)
    probability = (pairs + single) / (pairs.sum(1, keepdim=True) + 1)
    return -float(probability[windows[:, :-1], windows[:, 1:]].log2().mean())


@torch.no_grad()
def model_bits_per_byte(model: Decoder, windows: Tensor, batch: int = 32) -> float:
    """Of the model: each byte of a window is predicted from those before it in the window."""
    model.eval()
    nats = 0.0
    for part in windows.split(batch):
        logits = model(part[:, :-1]).logits
        nats += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return nats / windows[:, 1:].numel() / math.log(2)
