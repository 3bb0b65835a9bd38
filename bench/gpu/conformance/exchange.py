"""ldmatrix and stmatrix; shuffles, votes, reductions, atomics; barriers and mbarriers; clusters; dependent launches."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.gpu.conformance.case import Case, Outputs
from bench.gpu.conformance.code import ptx_of
from bench.gpu.conformance.copies import MARK, seeded, simple
from bench.gpu.conformance.target import Target


def matrices() -> Case:
    """Row r of matrix m comes from the line that lane 8m + r points at; lane l holds row l / 4, elements 2 (l % 4) and
    the next, or with .trans column l / 4 of these rows."""
    lines = seeded(32, 4, seed=1)
    rows = torch.randperm(32, generator=torch.Generator().manual_seed(2)).int()

    def run(target: Target) -> Outputs:
        given, order = target.tensor(lines), target.tensor(rows)
        loaded = target.tensor(torch.zeros(14, 32, dtype=torch.int32))
        stored = target.tensor(torch.zeros(6, 32, 4, dtype=torch.int32))
        target.launch(ptx_of("exchange.cu"), "load_and_store_matrix", given, order, loaded, stored)
        target.finish()
        return {"loaded": loaded.cpu(), "stored": stored.cpu()}

    def want() -> Outputs:
        halves = lines.view(torch.int16).view(32, 8)[rows.long()].view(4, 8, 8)  # matrix, row, column
        straight = halves.contiguous().view(torch.int32).view(4, 32)
        turned = halves.mT.contiguous().view(torch.int32).view(4, 32)
        loaded = torch.cat([straight, turned, straight[:2], turned[:2], straight[:1], turned[:1]])
        # What a lane stores are the words of `lines` as [register][lane].
        held = lines.reshape(4, 32).contiguous().view(torch.int16).view(4, 8, 8)
        stored = MARK.expand(6, 32, 4).clone()
        for form, (count, turn) in enumerate((c, t) for c in (4, 2, 1) for t in (False, True)):
            values = (held.mT if turn else held)[:count].contiguous().view(torch.int32).view(-1, 4)
            stored[form, rows[: 8 * count].long()] = values
        return {"loaded": loaded, "stored": stored}

    return Case("ldmatrix and stmatrix", "x1, x2, x4, .trans", run, want)


def product() -> Case:
    """mma.sync of what ldmatrix loaded of what cp.async copied."""
    a, b = seeded(16, 16, seed=3, low=-4, high=5).bfloat16(), seeded(16, 8, seed=4, low=-4, high=5).bfloat16()
    return simple("ldmatrix and stmatrix", "mma.sync of its fragments", "tensor.cu", "ldmatrix_mma", [a, b],
                  torch.zeros(16, 8), lambda: a.float() @ b.float())  # fmt: skip


def warp() -> Case:
    values = seeded(32, seed=5, low=0, high=8)

    def want() -> Tensor:
        lane, v = torch.arange(32), values.tolist()
        bit = [1 << i for i in range(32)]

        def signed(number: int) -> int:
            return number - 2**32 if number >> 31 else number

        def everywhere(number: int) -> Tensor:
            return torch.full((32,), signed(number), dtype=torch.int32)

        def reduce(function: Callable[[int, int], int]) -> Tensor:
            result = v[0]
            for other in v[1:]:
                result = function(result, other)
            return everywhere(result)

        odd = sum(v[1::2])
        rows = [
            values[lane * 7 % 32],
            values[lane // 8 * 8 + (lane + 3) % 8],
            values[torch.where(lane < 3, lane, lane - 3)],
            values[torch.where(lane % 16 < 5, lane, lane - 5)],
            values[torch.where(lane > 28, lane, lane + 3)],
            values[torch.where(lane % 16 > 6, lane, lane + 9) % 32],
            values[lane ^ 21],
            everywhere(int(all(v)) + 2 * int(5 in v) + 4),
            everywhere(sum(b for b, x in zip(bit, v, strict=True) if x & 1)),
            torch.tensor([signed(sum(b for b, x in zip(bit, v, strict=True) if x == mine)) for mine in v]).int(),
            reduce(lambda x, y: x + y),
            reduce(min),
            reduce(max),
            reduce(lambda x, y: x & y),
            reduce(lambda x, y: x | y),
            reduce(lambda x, y: x ^ y),
            torch.where(lane % 2 == 1, odd, 0).int(),
        ]
        return torch.stack(rows)

    return simple("warp exchange", "shuffle, vote, match, reduce", "exchange.cu", "warp_exchange", [values],
                  torch.zeros(17, 32, dtype=torch.int32), want)  # fmt: skip


def atomics() -> Case:
    inputs, start = seeded(2, 64, seed=6), seeded(36, seed=7)
    start[8] = start[20] = 17
    start[9] = start[21] = 40

    def after(initial: Tensor, values: list[int]) -> list[int]:
        low = 2**32 - 1
        first = [int(x) & low for x in initial]
        numbers = [x & low for x in values]
        count = len(values)
        looped = first[10]
        together = [first[5], first[6], first[7]]
        for x in numbers:
            looped = (looped * 3 + 1) & low
            together = [together[0] & (x | 0xFF), together[1] | (x & 0xFF00FF), together[2] ^ x]
        return [
            (first[0] + sum(numbers)) & low,
            min(first[1], *numbers),
            max(first[2], *numbers),
            min(int(initial[3]), *values) & low,
            max(int(initial[4]), *values) & low,
            *together,
            (first[8] + count) % 100,
            (first[9] - count) % 100,
            looped,
            first[11],
        ]

    def want() -> Tensor:
        all_values, block = inputs.reshape(-1).tolist(), inputs[0].tolist()
        words = [*after(start[:12], all_values), *start[12:24].tolist(), *after(start[12:24], block)]
        return torch.tensor([w - 2**32 if w >> 31 > 0 else w for w in words]).int()

    return simple("atomics", "global and shared", "exchange.cu", "atomics", [inputs], start, want, grid=2, block=64)


def histogram() -> Case:
    values = seeded(1000, seed=8, low=0, high=37)

    def run(target: Target) -> Outputs:
        given, bins = target.tensor(values), target.tensor(torch.zeros(37, dtype=torch.int32))
        target.launch(ptx_of("basic.cu"), "histogram", given, bins, 1000, 37, grid=3, block=128, shared=37 * 4)
        target.finish()
        return {"bins": bins.cpu()}

    return Case("atomics", "histogram", run, lambda: {"bins": torch.bincount(values, minlength=37).int()})


def named_barriers() -> Case:
    """Two pairs of warps meet at barriers of their own, then all count."""
    thread = torch.arange(128)
    other = thread // 64 * 64 + (thread + 32) % 64
    return simple("named barriers", "pairs of warps, count", "tensor.cu", "named_barriers", [],
                  torch.zeros(128, dtype=torch.int32), lambda: (other * 1000 + 43).int(), block=128)  # fmt: skip


def phases() -> Case:
    """The manual's rules, step by step: 1 and 2 say which parity is over, 10 + n what was pending before an arrival."""
    want = torch.tensor([2, 13, 2, 12, 2, 11, 1, 13, 1, 1, 1, 2, 1, 2, 99]).int()
    return simple("mbarrier", "phases, counts, bytes, drop", "exchange.cu", "mbarrier_phases", [],
                  torch.zeros(15, dtype=torch.int32), lambda: want)  # fmt: skip


def clusters() -> Case:
    def want() -> Tensor:
        rows = []
        for block in range(8):  # a grid of 4 x 2: two clusters side by side
            x, y = block % 4, block // 4
            rank, cluster = x % 2 + 2 * y, x // 2
            after = (rank + 1) % 4
            neighbour = after // 2 * 4 + cluster * 2 + after % 2
            total = 0x1111 if rank == 0 else 0
            rows.append([rank, x % 2, y, 2, 2, cluster, 0, 100 + neighbour, (rank - 2) % 4, total])
        return torch.tensor(rows).int()

    out = torch.zeros(8, 10, dtype=torch.int32)
    return simple("clusters", "ids, distributed shared memory", "exchange.cu", "cluster_exchange", [], out, want,
                  grid=(4, 2), cluster=(2, 2))  # fmt: skip


def dependent_launch() -> Case:
    numbers = seeded(256, seed=9, low=-1000, high=1000)

    def run(target: Target) -> Outputs:
        given = target.tensor(numbers)
        between, out = (target.tensor(torch.zeros(256, dtype=torch.int32)) for _ in range(2))
        code = ptx_of("exchange.cu")
        target.launch(code, "launch_first", given, between, grid=4, block=64)
        target.launch(code, "launch_second", between, out, grid=4, block=64, programmatic=True)
        target.finish()
        return {"out": out.cpu()}

    return Case("dependent launch", "second waits for first", run, lambda: {"out": (numbers * 3).flip(0) + 1})


def conversions() -> Case:
    """f32 to 8- and 16-bit floats and to integers: every bf16 value, and random patterns of 32 bits; no NaN."""
    patterns = torch.cat([torch.arange(65536) << 16, seeded(65536, seed=10).long() & 0xFFFFFFFF])
    x = torch.where(patterns >= 2**31, patterns - 2**32, patterns).int().view(torch.float32)
    x = x[~x.isnan()]
    n = x.numel()

    def run(target: Target) -> Outputs:
        given = target.tensor(x)
        kinds = (torch.bfloat16, torch.float16, torch.uint8, torch.uint8, torch.int32, torch.float32)
        outs = [target.tensor(torch.zeros(n, dtype=kind)) for kind in kinds]
        target.launch(ptx_of("basic.cu"), "conversions", given, *outs, n, grid=(n + 255) // 256, block=256)
        target.finish()
        return dict(zip(("bf16", "f16", "e4m3", "e5m2", "s32", "back"), (o.cpu() for o in outs), strict=True))

    def want() -> Outputs:
        e4m3 = x.clamp(-448, 448).to(torch.float8_e4m3fn)
        whole = x.double().round().clamp(-(2**31), 2**31 - 1)  # ties to even, saturating
        return {
            "bf16": x.bfloat16(),
            "f16": x.half(),
            "e4m3": e4m3.view(torch.uint8),
            "e5m2": x.clamp(-57344, 57344).to(torch.float8_e5m2).view(torch.uint8),
            "s32": whole.int(),
            "back": e4m3.float(),
        }

    return Case("conversions", "f32 to 8 and 16 bits", run, want)


def packed_conversions() -> Case:
    pattern = torch.arange(65536)

    def halves() -> Tensor:
        both = torch.stack([pattern, (pattern + 1) % 65536], 1)
        return torch.where(both >= 32768, both - 65536, both).short().view(torch.float16)

    def run(target: Target) -> Outputs:
        kinds = (torch.int32, torch.int32, torch.int16, torch.int16)
        outs = [target.tensor(torch.zeros(65536, dtype=kind)) for kind in kinds]
        target.launch(ptx_of("exchange.cu"), "packed_conversions", *outs, grid=256, block=256)
        target.finish()
        f16 = [o.cpu().view(torch.float16).view(-1, 2) for o in outs[:2]]
        fp8 = [o.cpu().view(torch.uint8).view(-1, 2) for o in outs[2:]]
        nan = halves().isnan()
        return {
            "e4m3 to f16": f16[0].nan_to_num(nan=12345.0),  # which NaN is not compared
            "e5m2 to f16": f16[1].nan_to_num(nan=12345.0, posinf=float("inf"), neginf=-float("inf")),
            "f16 to e4m3": fp8[0].masked_fill(nan, 0),
            "f16 to e5m2": fp8[1].masked_fill(nan, 0),
            "NaN to e4m3": fp8[0][nan] & 0x7F,
        }

    def want() -> Outputs:
        pairs = torch.stack([pattern & 255, pattern >> 8], 1).to(torch.uint8)
        x = halves()
        nan = x.isnan()
        bounded = {k: x.float().clamp(-k, k) for k in (448, 57344)}
        return {
            "e4m3 to f16": pairs.view(torch.float8_e4m3fn).half().nan_to_num(nan=12345.0),
            "e5m2 to f16": pairs.view(torch.float8_e5m2)
            .half()
            .nan_to_num(nan=12345.0, posinf=float("inf"), neginf=-float("inf")),
            "f16 to e4m3": bounded[448].to(torch.float8_e4m3fn).view(torch.uint8).masked_fill(nan, 0),
            "f16 to e5m2": bounded[57344].to(torch.float8_e5m2).view(torch.uint8).masked_fill(nan, 0),
            "NaN to e4m3": torch.full((int(nan.sum()),), 0x7F, dtype=torch.uint8),
        }

    return Case("conversions", "pairs of FP8 and f16", run, want)


def approximations() -> Case:
    """Errors relative to the result, or to 1 where that is larger: bounds that hold whatever the last bits are, near
    those of the manual."""
    x = torch.rand(1024, generator=torch.Generator().manual_seed(12)) * 4 + 0.25
    bounds = torch.tensor([2.0**-21, 2.0**-22, 2.0**-22, 2.0**-22, 2.0**-22, 2.0**-10.9]).view(-1, 1)

    def run(target: Target) -> Outputs:
        given, out = target.tensor(x), target.tensor(torch.zeros(6, 1024))
        target.launch(ptx_of("exchange.cu"), "approximations", given, out, 1024, grid=4, block=256)
        target.finish()
        return {"values": out.cpu()}

    def want() -> Outputs:
        y = x.double()
        values = torch.stack([y.exp2(), y.log2(), 1 / y, y.rsqrt(), y.sqrt(), y.tanh()])
        return {"values": values, "magnitude": bounds * values.abs().clamp(min=1)}

    reason = "approximations have error bounds in the manual, not bits"
    return Case("approximations", "ex2, lg2, rcp, rsqrt, sqrt, tanh", run, want, reason, 1.0)


def cases() -> Iterator[Case]:
    yield matrices()
    yield product()
    yield warp()
    yield atomics()
    yield histogram()
    yield named_barriers()
    yield phases()
    yield clusters()
    yield dependent_launch()
    yield conversions()
    yield packed_conversions()
    yield approximations()
