"""TMA loads, stores, reductions, multicast and out-of-bounds fill; bulk copies; cp.async."""

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bench.gpu.conformance.case import Case, Outputs
from bench.gpu.conformance.code import ptx_of
from bench.gpu.conformance.layouts import swizzled
from bench.gpu.conformance.target import Target

MARK = torch.tensor(0xABABABAB - 2**32).int()


def seeded(*shape: int, seed: int = 0, low: int = -(2**31), high: int = 2**31) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).int()


def box_of(source: Tensor, at: Sequence[int], box: Sequence[int], fill: float = 0) -> Tensor:
    """The box at a coordinate (both innermost first), with what lies outside filled."""
    padded = torch.full([n + 2 * b for n, b in zip(source.shape, box[::-1], strict=True)], fill, dtype=source.dtype)
    padded[tuple(slice(b, b + n) for n, b in zip(source.shape, box[::-1], strict=True))] = source
    return padded[tuple(slice(c + b, c + 2 * b) for c, b in zip(at[::-1], box[::-1], strict=True))].contiguous()


def inside_of(target: Tensor, at: Sequence[int], box: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Of a box at a coordinate the part that lies inside: where in the tensor, and where in the box."""
    there, here = [], []
    for n, c, b in zip(target.shape, at[::-1], box[::-1], strict=True):
        low, high = max(c, 0), min(n, c + b)
        there.append(slice(low, max(low, high)))
        here.append(slice(low - c, max(low, high) - c))
    return tuple(there), tuple(here)


def roundtrip(swizzle: int, at: tuple[int, int]) -> Case:
    """A box of 16-bit elements: as it lies in shared memory, and stored again."""
    source = seeded(64, 64, seed=1).short()
    box = [(swizzle or 64) // 2, 24]

    def run(target: Target) -> Outputs:
        given, stored = target.tensor(source), target.tensor(torch.full_like(source, -1))
        raw = target.tensor(torch.zeros(2 * box[0] * box[1], dtype=torch.uint8))
        maps = [target.map(t, box, "u16", swizzle=swizzle) for t in (given, stored)]
        target.launch(ptx_of("tensor.cu"), "tma_roundtrip", *maps, raw, raw.numel(), *at, block=128, shared=16384)
        target.finish()
        return {"shared": raw.cpu(), "stored": stored.cpu()}

    def want() -> Outputs:
        linear = box_of(source, at, box).view(torch.uint8).reshape(-1)
        shared, stored = torch.zeros_like(linear), torch.full_like(source, -1)
        byte = torch.arange(linear.numel())
        shared[swizzled(byte, swizzle)] = linear
        there, _ = inside_of(source, at, box)
        stored[there] = source[there]
        return {"shared": shared, "stored": stored}

    return Case("tma load and store", f"swizzle {swizzle} at {at}", run, want)


def ranked(rank: int, sizes: list[int], box: list[int], at: list[int], nan_fill: bool) -> Case:
    """A box of 1, 3 or 5 dimensions: loaded, and added to a tensor of ones."""
    source = seeded(*sizes[::-1], seed=rank, low=-1000, high=1000).float()

    def run(target: Target) -> Outputs:
        given, added = target.tensor(source), target.tensor(torch.ones_like(source))
        raw = target.tensor(torch.full(box[::-1], -7.0))
        maps = [target.map(given, box, "f32", nan_fill=nan_fill), target.map(added, box, "f32")]
        place = struct.pack("<5i", *at, *[0] * (5 - rank))
        target.launch(ptx_of("tensor.cu"), f"tma_rank{rank}", *maps, raw, raw.numel() * 4, place, block=64, shared=4096)
        target.finish()
        # Which NaN a box is filled with is not defined.
        loaded = raw.cpu()
        return {"loaded": loaded.nan_to_num(0.0), "filled": loaded.isnan(), "added": added.cpu()}

    def want() -> Outputs:
        loaded, added = box_of(source, at, box, float("nan") if nan_fill else 0.0), torch.ones_like(source)
        there, _ = inside_of(source, at, box)
        added[there] += source[there]
        return {"loaded": loaded.nan_to_num(0.0), "filled": loaded.isnan(), "added": added}

    return Case("tma out of bounds", f"rank {rank}, filled with {'NaN' if nan_fill else 'zeros'}", run, want)


def wrapped_inc(old: Tensor, value: Tensor) -> Tensor:
    old, value = old.long() & 0xFFFFFFFF, value.long() & 0xFFFFFFFF
    return torch.where(old >= value, 0, old + 1).int()


def wrapped_dec(old: Tensor, value: Tensor) -> Tensor:
    old, value = old.long() & 0xFFFFFFFF, value.long() & 0xFFFFFFFF
    return torch.where((old == 0) | (old > value), value, old - 1).int()


def unsigned(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Of 32-bit patterns as unsigned numbers."""
    return lambda a, b: function(a.long() & 0xFFFFFFFF, b.long() & 0xFFFFFFFF).int()


#: Operation, element type, what becomes of the old value and the new one.
REDUCTIONS = [
    ("add", "u32", torch.add),
    ("add", "s32", torch.add),
    ("add", "f32", torch.add),
    ("add", "f16", torch.add),
    ("add", "bf16", torch.add),
    ("min", "u32", unsigned(torch.minimum)),
    ("min", "s32", torch.minimum),
    ("min", "f16", torch.minimum),
    ("min", "bf16", torch.minimum),
    ("max", "u32", unsigned(torch.maximum)),
    ("max", "s32", torch.maximum),
    ("max", "f16", torch.maximum),
    ("max", "bf16", torch.maximum),
    ("inc", "u32", wrapped_inc),
    ("dec", "u32", wrapped_dec),
    ("and", "u32", torch.bitwise_and),
    ("or", "u32", torch.bitwise_or),
    ("xor", "u32", torch.bitwise_xor),
]


def reduction(operation: str, kind: str, combine: Callable[[Tensor, Tensor], Tensor], at: tuple[int, int]) -> Case:
    real = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}.get(kind)
    box = [16 if real in (None, torch.float32) else 32, 8]

    def values(rows: int, seed: int) -> Tensor:
        if real is None:
            drawn = seeded(rows, box[0], seed=seed)
            if operation in ("inc", "dec"):  # small ones, so that each rule is met
                drawn = drawn % 4
            return drawn
        return seeded(rows, box[0], seed=seed, low=-4000, high=4000).to(real) / 8

    def run(target: Target) -> Outputs:
        tile, out = target.tensor(values(8, 1)), target.tensor(values(24, 2))
        target.launch(
            ptx_of("copies.cu"), f"tma_reduce_{operation}", tile, target.map(out, box, kind), 512, *at, block=64,
            shared=512,
        )  # fmt: skip
        target.finish()
        return {"reduced": out.cpu()}

    def want() -> Outputs:
        tile, out = values(8, 1), values(24, 2)
        there, here = inside_of(out, at, box)
        out[there] = combine(out[there], tile[here])
        return {"reduced": out}

    return Case("tma reduce", f"{operation} {kind} at {at}", run, want)


def multicast(masks: tuple[int, ...]) -> Case:
    source = seeded(16, 64, seed=3)
    blocks = range(4)

    def run(target: Target) -> Outputs:
        given, out = target.tensor(source), target.tensor(torch.zeros(2, 4, 4, 4, 64, dtype=torch.int32))
        expected = sum(sum(mask >> b & 1 for mask in masks) << 8 * b for b in blocks)
        packed = sum(mask << 8 * b for b, mask in enumerate(masks))
        target.launch(
            ptx_of("copies.cu"), "multicast_masks", target.map(given, [64, 4], "s32"), out, packed, expected, grid=8,
            block=64, cluster=4,
        )  # fmt: skip
        target.finish()
        return {"tiles": out.cpu()}

    def want() -> Outputs:
        out = MARK.expand(2, 4, 4, 4, 64).clone()
        for b, quarter in itertools.product(blocks, blocks):
            if masks[quarter] >> b & 1:
                out[:, b, quarter] = source[4 * quarter : 4 * quarter + 4]
        return {"tiles": out}

    return Case("tma multicast", "masks " + " ".join(f"{mask:04b}" for mask in masks), run, want)


def simple(family: str, name: str, file: str, kernel: str, inputs: Sequence[Tensor | int], out: Tensor,
           oracle: Callable[[], Tensor], **extents: int) -> Case:  # fmt: skip
    """A kernel that takes inputs and then one output."""

    def run(target: Target) -> Outputs:
        given = [target.tensor(v) if isinstance(v, Tensor) else v for v in inputs]
        result = target.tensor(out)
        target.launch(ptx_of(file), kernel, *given, result, **extents)
        target.finish()
        return {"out": result.cpu()}

    return Case(family, name, run, lambda: {"out": oracle()})


def cp_async() -> Case:
    words, given = seeded(32, 4, seed=5), torch.arange(32).int() % 17

    def want() -> Tensor:
        out = MARK.expand(3, 32, 16 // 4).clone()
        source = words.view(torch.uint8).view(32, 16)
        result = out.contiguous().view(torch.uint8).view(3, 32, 16)
        for group, size in enumerate((4, 8, 16)):
            result[group, :, :size] = torch.where(torch.arange(size) < given.view(-1, 1), source[:, :size], 0)
        return result.view(torch.int32).view(3, 32, 4)

    return simple("cp.async", "4, 8, 16 bytes with zero fill", "copies.cu", "cp_async_fill", [words, given],
                  torch.zeros(3, 32, 4, dtype=torch.int32), want)  # fmt: skip


def bulk_add() -> Case:
    """A bulk load, and a bulk reduction of twice its values."""
    x = seeded(256, seed=8, low=-1000, high=1000).float()

    def run(target: Target) -> Outputs:
        given, out = target.tensor(x), target.tensor(torch.ones(256))
        target.launch(ptx_of("tensor.cu"), "bulk_add", given, out, 256, block=64, shared=1024)
        target.finish()
        return {"out": out.cpu()}

    return Case("bulk copy", "load and add", run, lambda: {"out": 1 + 2 * x})


def ring() -> Case:
    """A producer warp and consumer warps over two stages, ten tiles."""
    x = seeded(320, 32, seed=9, low=-8, high=8).float()

    def run(target: Target) -> Outputs:
        given, out = target.tensor(x), target.tensor(torch.zeros(1))
        target.launch(ptx_of("tensor.cu"), "ring_ok", target.map(given, [32, 32], "f32"), out, 10, block=160)
        target.finish()
        return {"sum": out.cpu()}

    return Case("mbarrier", "ring of two stages", run, lambda: {"sum": x.sum().view(1)})


def cases() -> Iterator[Case]:
    for swizzle in (0, 32, 64, 128):
        for at in ((0, 0), (16, 40), (-8, -3), (56, 60)):
            yield roundtrip(swizzle, at)
    for nan_fill in (False, True):
        yield ranked(1, [100], [32], [80], nan_fill)
        yield ranked(3, [20, 6, 5], [8, 4, 3], [16, -1, 3], nan_fill)
        yield ranked(5, [12, 4, 3, 5, 2], [8, 2, 2, 3, 2], [4, 3, -1, 3, 0], nan_fill)
    for operation, kind, combine in REDUCTIONS:
        yield reduction(operation, kind, combine, (0, 8))
        yield reduction(operation, kind, combine, (-3, 20))
    yield multicast((15, 15, 15, 15))
    yield multicast((0b0001, 0b0110, 0b1101, 0b1000))
    yield bulk_add()
    numbers = seeded(2, 64, seed=6)
    yield simple("bulk copy", "shared memory to a peer's", "copies.cu", "bulk_to_neighbour", [numbers],
                 torch.zeros_like(numbers), lambda: numbers.flip(0), grid=2, block=64, cluster=2)  # fmt: skip
    yield cp_async()
    yield ring()
