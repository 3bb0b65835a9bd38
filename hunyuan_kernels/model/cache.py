"""The cache of keys and values: one place for each layer that owns them, bf16, fp32 or FP8."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hunyuan_kernels.model.config import Config
from hunyuan_kernels.model.rope import rope_of

#: Keys (rotated, divided by their root mean square) and values, ``[B, num_key_value_heads, T, head_dim]`` each.
KeyValue = tuple[Tensor, Tensor]

FP8 = torch.float8_e4m3fn
DTYPES = (torch.bfloat16, torch.float32, FP8)
_FP8_LARGEST = 448.0
#: Positions whose tables of RoPE are made at once.
_ROPE_BLOCK = 256


class Fp8KeyValue(NamedTuple):
    """Keys and values as an FP8 cache holds them, e4m3, with a scale for each sequence and head: ``[B, heads, 1, 1]``.

    Under a scale of 0 there are zeros.
    """

    keys: Tensor
    values: Tensor
    key_scale: Tensor
    value_scale: Tensor

    def expanded(self, dtype: torch.dtype) -> KeyValue:
        """What they stand for."""
        return (self.keys.float() * self.key_scale).to(dtype), (self.values.float() * self.value_scale).to(dtype)


class _Store:
    """Keys and values of one layer: ``data [2, B, heads, capacity, head_dim]``, for FP8 with scales ``[2, B, heads]``.

    Scales are powers of two and grow when a larger value comes: what is stored is then divided by the ratio, which is
    exact but for elements that become subnormal.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None) -> None:
        self.data = torch.zeros((2, *shape), dtype=dtype, device=device)
        self.scale = torch.zeros((2, *shape[:2], 1, 1), device=device) if dtype == FP8 else None

    def _quantized(self, new: Tensor) -> Tensor:
        """Raises scales that are too small. Where nothing is, a scale is 0 and new elements are zeros or NaN."""
        assert self.scale is not None
        largest = new.abs().amax((3, 4), keepdim=True)
        if bool((largest > _FP8_LARGEST * self.scale).any()) or not bool(largest.isfinite().all()):
            self._grow(new.abs().nan_to_num(0.0, 0.0).amax((3, 4), keepdim=True))
        scaled = new / torch.where(self.scale > 0, self.scale, 1.0)
        return scaled.clamp_(-_FP8_LARGEST, _FP8_LARGEST).to(FP8)

    def _grow(self, largest: Tensor) -> None:
        assert self.scale is not None
        needed = torch.where(largest > 0, torch.exp2(torch.ceil(torch.log2(largest / _FP8_LARGEST))), 0.0)
        grown = torch.maximum(self.scale, needed)
        ratio = torch.where(grown > self.scale, self.scale / grown, 1.0)
        if bool(self.scale.any()):  # else there is nothing yet
            self.data = (self.data.float() * ratio).to(FP8)
        self.scale = grown

    def write(self, new: KeyValue, starts: Sequence[int], counts: Sequence[int]) -> None:
        """``new``, ``[B, heads, T, head_dim]`` each, of which each sequence has its count."""
        if self.scale is not None:
            both = torch.stack((new[0].float(), new[1].float()))
            if len(set(counts)) != 1:  # padding must not raise scales
                steps = torch.arange(both.shape[3], device=both.device)
                counted = steps < torch.tensor(counts, device=both.device).view(-1, 1)
                both = torch.where(counted[:, None, :, None], both, 0)
            quantized = self._quantized(both)
            new = quantized[0], quantized[1]
        for data, part in zip(self.data, new, strict=True):
            if len(set(starts)) == len(set(counts)) == 1:
                data[:, :, starts[0] : starts[0] + counts[0]] = part[:, :, : counts[0]]
                continue
            for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
                data[row, :, start : start + count] = part[row, :, :count]

    def read(self, length: int) -> KeyValue | Fp8KeyValue:
        keys, values = self.data[:, :, :, :length]
        return (keys, values) if self.scale is None else Fp8KeyValue(keys, values, *self.scale)


class KeyValueCache:
    """Keys and values of ``batch`` sequences of up to ``capacity`` tokens, each with a length of its own.

    Layers that share keys and values (cross-layer attention) share their place: a token takes
    ``config.key_value_bytes_per_token(element_size)`` bytes. All memory is allocated at once.

    Raises:
        ValueError: a dtype that is not among ``DTYPES``, a batch or capacity below 1.
    """

    def __init__(
        self,
        config: Config,
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"KeyValueCache: dtype is {dtype}; allowed: {', '.join(map(str, DTYPES))}")
        for name, value in (("batch", batch), ("capacity", capacity)):
            if type(value) is not int or value < 1:
                raise ValueError(f"KeyValueCache: {name} is {value}; an integer of at least 1 is required")
        self.config, self.dtype, self.capacity = config, dtype, capacity
        self._device = device
        self._rope: tuple[int, tuple[Tensor, Tensor]] | None = None  # first position of a block, its tables
        #: Tokens of each sequence that are stored.
        self.lengths = [0] * batch
        #: Tokens of each sequence in the pass that is under way.
        self.incoming = [0] * batch
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        self._stores = {
            layer: _Store(shape, dtype, device) for layer in range(config.num_layers) if config.owns_key_value(layer)
        }

    @property
    def nbytes(self) -> int:
        """Of keys and values; an FP8 cache has 8 more for each sequence, head and owner: two scales."""
        return sum(store.data.nbytes for store in self._stores.values())

    @property
    def length_after(self) -> int:
        """Of the longest sequence, after the pass that is under way."""
        return max(a + b for a, b in zip(self.lengths, self.incoming, strict=True))

    def begin(self, incoming: Sequence[int]) -> None:
        """Announces the number of tokens that the next pass brings to each sequence.

        Raises:
            ValueError: not one number for each sequence, or more tokens than there is room for.
        """
        if len(incoming) != len(self.lengths):
            raise ValueError(f"KeyValueCache: {len(incoming)} sequences come; the cache is for {len(self.lengths)}")
        for row, (length, count) in enumerate(zip(self.lengths, incoming, strict=True)):
            if count < 0 or length + count > self.capacity:
                raise ValueError(
                    f"KeyValueCache: sequence {row} has {length} tokens and {count} come; capacity is {self.capacity}"
                )
        self.incoming = list(incoming)

    def rope_of_token(self, position: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """RoPE's tables of one position, ``[1, head_dim]`` each: rows of those that are made for a block of them."""
        first = position // _ROPE_BLOCK * _ROPE_BLOCK
        if self._rope is None or self._rope[0] != first or self._rope[1][0].dtype != dtype:
            with torch.inference_mode(False):  # the next pass may be one with gradients
                positions = torch.arange(first, first + _ROPE_BLOCK, device=self._device)
                self._rope = first, rope_of(self.config, positions, dtype)
        rows = slice(position - first, position - first + 1)
        cos, sin = self._rope[1]
        return cos[rows], sin[rows]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeyValue | Fp8KeyValue:
        """Stores those that ``layer``, one that owns them, made in this pass; returns all, to the longest sequence."""
        store = self._stores[layer]
        store.write((keys, values), self.lengths, self.incoming)
        return store.read(self.length_after)

    def finish(self) -> None:
        """Ends a pass: its tokens count from now on."""
        self.lengths = [a + b for a, b in zip(self.lengths, self.incoming, strict=True)]
        self.incoming = [0] * len(self.lengths)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forgets the tokens at and past ``lengths``: those that were drafted and not accepted.

        Raises:
            ValueError: not one length for each sequence, or one that the sequence does not have.
        """
        if len(lengths) != len(self.lengths):
            raise ValueError(f"KeyValueCache: {len(lengths)} lengths come; the cache has {len(self.lengths)} sequences")
        for row, (new, old) in enumerate(zip(lengths, self.lengths, strict=True)):
            if not 0 <= new <= old:
                raise ValueError(f"KeyValueCache: sequence {row} has {old} tokens; it cannot be cut to {new}")
        self.lengths = list(lengths)
