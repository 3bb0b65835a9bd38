"""wgmma: every type and every N; operand majors, swizzles, A from registers, negation, what is left undefined.

Shared memory is filled with bytes placed by layouts.py, registers are written as they are: the oracle decides where
elements lie, and the product must come out. Sparse, f64 and one-bit forms are left out: no kernel of this project has
them. Integers and multiples of 1/2 that are exact in every accumulator make the bits independent of the order of sums.
"""

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.gpu.conformance.case import Case, Outputs
from bench.gpu.conformance.layouts import STEP_BYTES, a_fragment, accumulator_positions, place
from bench.gpu.conformance.target import Target

STEPS = 4  # wgmmas along K: 128 bytes
ORDER = "the order and the alignment in which products are summed are not documented"
SWIZZLES = (0, 32, 64, 128)
DTYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "s8": torch.int8,
    "u8": torch.uint8,
}
FP8 = ("e4m3", "e5m2")
TYPES = [
    ("f32", "f16", "f16"),
    ("f16", "f16", "f16"),
    ("f32", "bf16", "bf16"),
    ("f32", "tf32", "tf32"),
    *((accumulator, a, b) for accumulator in ("f32", "f16") for a in FP8 for b in FP8),
    *(("s32", a, b) for a in ("s8", "u8") for b in ("s8", "u8")),
]
HEAD = ".version 8.4\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 tile[];\n"


@dataclass(frozen=True)
class Form:
    """One instruction."""

    accumulator: str
    a: str
    b: str
    n: int
    a_registers: bool = False
    a_major: str = "k"
    b_major: str = "k"
    negate_a: bool = False
    negate_b: bool = False

    @property
    def depth(self) -> int:
        return STEP_BYTES // DTYPES[self.a].itemsize

    @property
    def registers(self) -> int:
        return self.n // (4 if self.accumulator == "f16" else 2)

    @property
    def kernel(self) -> str:
        extra = ("_registers" if self.a_registers else "") + f"_{self.a_major}{self.b_major}"
        extra += ("_negate_a" if self.negate_a else "") + ("_negate_b" if self.negate_b else "")
        return f"wgmma_n{self.n}_{self.accumulator}_{self.a}_{self.b}{extra}"

    def ptx(self) -> str:
        """An entry of the module: a, its words (0: registers), b, its words, descriptors of A and of B, the
        accumulators before and after, and whether those before count."""
        d = [f"%d{i}" for i in range(self.registers)]
        flags = "" if self.accumulator == "s32" else f", {-1 if self.negate_a else 1}, {-1 if self.negate_b else 1}"
        if DTYPES[self.a].itemsize == 2:
            majors = [self.b_major] if self.a_registers else [self.a_major, self.b_major]
            flags += "".join(f", {int(major == 'm')}" for major in majors)
        name = f"m64n{self.n}k{self.depth}.{self.accumulator}.{self.a}.{self.b}"
        multiplies = []
        for step in range(STEPS):
            a = "{" + ", ".join(f"%a{4 * step + i}" for i in range(4)) + "}" if self.a_registers else f"%da{step}"
            use = "%use" if step == 0 else "%yes"
            multiplies.append(f"wgmma.mma_async.sync.aligned.{name} {{{', '.join(d)}}}, {a}, %db{step}, {use}{flags};")
        fragments = [f"ld.global.b32 %a{i}, [%from + {512 * i}];" for i in range(16)] if self.a_registers else []
        descriptors = []
        for operand, base in (("a", "%tile"), ("b", "%second")):
            if operand == "b" or not self.a_registers:
                descriptors += [f"ld.param.u64 %from64, [d{operand}]; shr.u32 %t, {base}, 4; cvt.u64.u32 %base, %t;"]
                descriptors += [
                    f"ld.global.b64 %d{operand}{s}, [%from64 + {8 * s}]; add.u64 %d{operand}{s}, %d{operand}{s}, %base;"
                    for s in range(STEPS)
                ]
        lines = [
            f".visible .entry {self.kernel}(.param .u64 a, .param .u32 a_words, .param .u64 b, .param .u32 b_words,",
            "  .param .u64 da, .param .u64 db, .param .u64 before, .param .u64 after, .param .u32 use)",
            ".reqntid 128 {",
            ".reg .b32 %thread, %i, %words, %tile, %second, %at, %t, %a<16>;",
            f".reg .b32 %d<{self.registers}>;" if self.accumulator != "f32" else f".reg .f32 %d<{self.registers}>;",
            f".reg .b64 %from, %from64, %offset, %base, %da<{STEPS}>, %db<{STEPS}>;",
            ".reg .pred %use, %yes, %more;",
            "mov.u32 %thread, %tid.x; mov.u32 %tile, tile; setp.eq.u32 %yes, 0, 0;",
            "mul.wide.u32 %offset, %thread, 4;",
            "ld.param.u32 %words, [a_words]; shl.b32 %t, %words, 2; add.u32 %second, %tile, %t;",
        ]
        for operand, base in (("a", "%tile"), ("b", "%second")):
            lines += [
                f"ld.param.u32 %words, [{operand}_words]; ld.param.u64 %from, [{operand}]; mov.u32 %i, %thread;",
                f"COPY_{operand}: setp.lt.u32 %more, %i, %words; @!%more bra DONE_{operand};",
                "mul.wide.u32 %from64, %i, 4; add.u64 %from64, %from64, %from; ld.global.b32 %t, [%from64];",
                f"shl.b32 %at, %i, 2; add.u32 %at, %at, {base}; st.shared.b32 [%at], %t;",
                f"add.u32 %i, %i, 128; bra COPY_{operand};",
                f"DONE_{operand}:",
            ]
        lines += [
            "fence.proxy.async.shared::cta; bar.sync 0;",
            "ld.param.u64 %from, [a]; add.u64 %from, %from, %offset;",
            *fragments,
            *descriptors,
            "ld.param.u64 %from, [before]; add.u64 %from, %from, %offset;",
            *[f"ld.global.b32 {r}, [%from + {512 * i}];" for i, r in enumerate(d)],
            "ld.param.u32 %t, [use]; setp.ne.u32 %use, %t, 0;",
            "wgmma.fence.sync.aligned;",
            *multiplies,
            "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
            "ld.param.u64 %from, [after]; add.u64 %from, %from, %offset;",
            *[f"st.global.b32 [%from + {512 * i}], {r};" for i, r in enumerate(d)],
            "ret; }",
        ]
        return "\n".join(lines)


def sizes(accumulator: str) -> list[int]:
    """Every N that the manual allows: all multiples of 8 for floats, fewer for integers."""
    return [n for n in range(8, 257, 8) if accumulator != "s32" or n <= 32 or n % 16 == 0]


def forms() -> Iterator[Form]:
    for accumulator, a, b in TYPES:
        for n in sizes(accumulator):
            yield Form(accumulator, a, b, n)
        yield Form(accumulator, a, b, 64, a_registers=True)
        if accumulator != "s32":
            yield Form(accumulator, a, b, 64, negate_a=True)
            yield Form(accumulator, a, b, 64, negate_b=True)
        if DTYPES[a].itemsize == 2:
            yield from (Form(accumulator, a, b, 64, a_major=i, b_major=j) for i, j in ("km", "mk", "mm"))
            yield Form(accumulator, a, b, 64, a_registers=True, b_major="m")
            yield Form(accumulator, a, b, 256, b_major="m")  # more atoms along N than one


@functools.cache
def module(accumulator: str, a: str, b: str) -> str:
    """The kernels of these types as one text."""
    return HEAD + "\n".join(f.ptx() for f in forms() if (f.accumulator, f.a, f.b) == (accumulator, a, b))


def exact_operand(name: str, rows: int, depth: int, seed: int) -> Tensor:
    """Values whose products and sums are exact in every accumulator."""
    generator = torch.Generator().manual_seed(seed)
    if name in ("s8", "u8"):
        low, high = (-128, 128) if name == "s8" else (0, 256)
        return torch.randint(low, high, (rows, depth), generator=generator).to(DTYPES[name])
    halves = torch.randint(-4, 5, (rows, depth), generator=generator)
    return (halves.double() / 2).to(DTYPES[name])


def words(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8).view(torch.int32)


def multiply(
    target: Target, form: Form, a: Tensor, b: Tensor, swizzles: tuple[int, int], before: Tensor, use: bool
) -> Tensor:
    """Accumulators of each thread, int32 [registers, 128], after 128 bytes of K."""
    b_image, b_steps = place(b, swizzles[1], form.b_major == "m")
    if form.a_registers:
        a_image, a_steps, a_words = torch.cat([a_fragment(s) for s in a.split(form.depth, 1)]), [0] * STEPS, 0
    else:
        a_image, a_steps = place(a, swizzles[0], form.a_major == "m")
        a_words = a_image.numel() // 4
    after = target.tensor(torch.full((form.registers, 128), -1, dtype=torch.int32))
    given = [target.tensor(words(t)) for t in (a_image, b_image)]
    steps = [target.tensor(torch.frombuffer(bytearray(struct.pack("<4Q", *s)), dtype=torch.int64)) for s in
             (a_steps, b_steps)]  # fmt: skip
    target.launch(
        module(form.accumulator, form.a, form.b), form.kernel, given[0], a_words, given[1], b_image.numel() // 4,
        *steps, target.tensor(before), after, int(use), block=128, shared=a_words * 4 + b_image.numel(),
    )  # fmt: skip
    target.finish()
    return after.cpu()


def to_registers(form: Form, tile: Tensor) -> Tensor:
    """A 64 x N tile as the accumulator registers of each thread, int32 [registers, 128]."""
    row, column = accumulator_positions(form.n, form.accumulator == "f16")
    kind = {"f32": torch.float32, "f16": torch.float16, "s32": torch.int32}[form.accumulator]
    return tile.to(kind)[row, column].contiguous().view(torch.int32).reshape(form.registers, 128)


def from_registers(form: Form, registers: Tensor) -> Tensor:
    row, column = accumulator_positions(form.n, form.accumulator == "f16")
    kind = {"f32": torch.float32, "f16": torch.float16, "s32": torch.int32}[form.accumulator]
    tile = torch.empty(64, form.n, dtype=kind)
    tile[row, column] = registers.view(kind).view(row.shape)
    return tile


def exact_case(form: Form, swizzles: tuple[int, int], use: bool, seed: int) -> Case:
    k = form.depth * STEPS

    def operands() -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed + 2)
        tile = torch.randint(-100, 101, (64, form.n), generator=generator)
        return exact_operand(form.a, 64, k, seed), exact_operand(form.b, form.n, k, seed + 1), tile

    def run(target: Target) -> Outputs:
        a, b, tile = operands()
        return {"accumulators": multiply(target, form, a, b, swizzles, to_registers(form, tile), use)}

    def want() -> Outputs:
        a, b, tile = operands()
        sign = -1 if form.negate_a != form.negate_b else 1
        # The first product alone replaces what was there before.
        return {"accumulators": to_registers(form, sign * (a.double() @ b.double().T) + (tile.double() if use else 0))}

    label = f"{form.kernel.removeprefix('wgmma_')} swizzles {swizzles[0]},{swizzles[1]}"
    return Case("wgmma", label + ("" if use else " fresh"), run, want)


def rounded_case(accumulator: str, a: str, b: str) -> Case:
    """Values of all magnitudes: sums are rounded."""
    form = Form(accumulator, a, b, 64)
    # f16: to nearest after each wgmma. FP8: 13 bits at least in the sum of each 32 products.
    unit = 2.0**-10 if accumulator == "f16" else 2.0**-12 if a in FP8 else 2.0**-20

    def operands() -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(7)
        one, other = (torch.randn(64, form.depth * STEPS, generator=generator) for _ in range(2))
        if a == "tf32":  # the manual leaves the low 13 bits of an operand to the hardware
            one, other = ((t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (one, other))
        return one.to(DTYPES[a]), other.to(DTYPES[b])

    def run(target: Target) -> Outputs:
        x, y = operands()
        zero = torch.zeros(form.registers, 128, dtype=torch.int32)
        return {"product": from_registers(form, multiply(target, form, x, y, (128, 128), zero, False))}

    def want() -> Outputs:
        x, y = (t.double() for t in operands())
        return {"product": x @ y.T, "magnitude": x.abs() @ y.abs().T}

    return Case("wgmma rounding", f"{accumulator}.{a}.{b}", run, want, ORDER, STEPS * unit)


def long_fp8_case() -> Case:
    """Sums of one sign over K = 1024: what FP8 accumulators lose when each wgmma cuts off 33 terms, each below 2^-13 of
    the largest."""
    form, launches = Form("f32", "e4m3", "e4m3", 64), 8

    def operands() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(11)
        for _ in range(launches):
            one, other = (torch.rand(64, form.depth * STEPS, generator=generator) + 0.5 for _ in range(2))
            yield one.to(DTYPES["e4m3"]), other.to(DTYPES["e4m3"])

    def run(target: Target) -> Outputs:
        registers = torch.zeros(form.registers, 128, dtype=torch.int32)
        for one, other in operands():
            registers = multiply(target, form, one, other, (128, 128), registers, True)
        return {"product": from_registers(form, registers)}

    def want() -> Outputs:
        return {"product": sum(one.double() @ other.double().T for one, other in operands())}

    reason = "FP8 accumulators keep fewer bits than f32 (about 14), which the manual does not say"
    return Case("fp8 accumulation", "one sign, K = 1024", run, want, reason, launches * STEPS * 33 * 2.0**-13)


def fp8_bits_case() -> Case:
    """1 + 2^-e for e = 0 to 18: where the small product is lost, the accumulator ends."""
    form = Form("f32", "e4m3", "e4m3", 64)

    def exponents() -> tuple[Tensor, Tensor]:
        return torch.arange(64) % 10, torch.arange(64) % 10

    def run(target: Target) -> Outputs:
        a, b = torch.zeros(64, form.depth * STEPS), torch.zeros(64, form.depth * STEPS)
        a[:, 0], b[:, 0] = (torch.exp2(-e.float()) for e in exponents())
        a, b = a.to(DTYPES["e4m3"]), b.to(DTYPES["e4m3"])
        ones = to_registers(form, torch.ones(64, 64))
        return {"sum": from_registers(form, multiply(target, form, a, b, (128, 128), ones, True))}

    def want() -> Outputs:
        x, y = exponents()
        return {"sum": 1 + torch.exp2(-(x.view(-1, 1) + y).double())}

    reason = "how many bits an FP8 accumulator keeps is not documented"
    return Case("fp8 accumulation", "1 + 2^-e", run, want, reason, 2.0**-12)


def cases() -> Iterator[Case]:
    for seed, form in enumerate(forms()):
        plain = not (form.a_registers or form.negate_a or form.negate_b) and form.n != 64
        if plain and form.a_major == form.b_major == "k":
            yield exact_case(form, (128, 128), seed % 2 == 0, seed)
            continue
        pairs = [(x, y) for x in SWIZZLES for y in SWIZZLES]
        if DTYPES[form.a].itemsize != 2 or form.accumulator == "f16":  # addresses of bytes: the same for all types
            pairs = [(s, s) for s in SWIZZLES]
        if form.a_registers:
            pairs = [(0, s) for s in SWIZZLES]
        if form.negate_a or form.negate_b:
            pairs = pairs[:1]
        for at, pair in enumerate(pairs):
            yield exact_case(form, pair, at % 2 == 0, 1000 * seed + at)
    for types in TYPES:
        if types[0] != "s32":
            yield rounded_case(*types)
    yield long_fp8_case()
    yield fp8_bits_case()
