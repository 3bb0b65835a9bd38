"""Single instructions against Python references; the PTX is written here, nvcc is not needed."""

import math
import random
import struct

import numpy as np
import pytest
import torch
from hunyuan_kernels._C import simulator

M32, M64 = 2**32 - 1, 2**64 - 1


def s32(v):
    return (v & M32) - 2**32 if v & 2**31 else v & M32


def s64(v):
    return (v & M64) - 2**64 if v & 2**63 else v & M64


def f32(bits):
    return struct.unpack("<f", struct.pack("<I", bits & M32))[0]


def bits32(x):
    return struct.unpack("<I", np.float32(x).tobytes())[0]


def run(body, a, b, c):
    """Runs `body` with %a, %b, %c (b32) or %A, %B, %C (b64) and returns the 64-bit values left in %R."""
    n = len(a)
    ptx = f"""
.version 8.0
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 po) {{
  .reg .b32 %a, %b, %c, %r, %i, %t; .reg .b64 %A, %B, %C, %R, %p, %o;
  .reg .f32 %f; .reg .f64 %d; .reg .b16 %h, %g; .reg .pred %q, %s;
  mov.u32 %i, %tid.x; mul.wide.u32 %o, %i, 8; mov.b64 %R, 0; mov.b32 %r, 0;
  ld.param.u64 %p, [pa]; add.s64 %p, %p, %o; ld.global.b64 %A, [%p];
  ld.param.u64 %p, [pb]; add.s64 %p, %p, %o; ld.global.b64 %B, [%p];
  ld.param.u64 %p, [pc]; add.s64 %p, %p, %o; ld.global.b64 %C, [%p];
  cvt.u32.u64 %a, %A; cvt.u32.u64 %b, %B; cvt.u32.u64 %c, %C;
  {body}
  ld.param.u64 %p, [po]; add.s64 %p, %p, %o; st.global.b64 [%p], %R;
  ret;
}}"""
    arrays = [np.array(v, dtype=np.uint64) for v in (a, b, c)]
    out = np.zeros(n, np.uint64)
    simulator.Gpu().launch(simulator.Module(ptx), "k", grid=1, block=n, args=[*arrays, out])
    return [int(v) for v in out]


def inputs(n=160):
    rng = random.Random(5)
    special = [0, 1, 2, 31, 32, 33, 63, 64, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, M64, M64 - 1]

    def draw():
        k = rng.random()
        return rng.choice(special) if k < 0.3 else rng.randrange(70) if k < 0.5 else rng.getrandbits(64)

    return [[draw() for _ in range(n)] for _ in range(3)]


def trunc_div(x, y):
    return int(abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1)


def bfe(a, b, c, signed, width):
    pos, length = b & 255, c & 255
    if length == 0:
        return 0
    sign = (a >> min(pos + length - 1, width - 1)) & 1 if signed else 0
    r = 0
    for i in range(width):
        bit = (a >> (pos + i)) & 1 if i < length and pos + i < width else sign
        r |= bit << i
    return r


def bfi(a, b, c, d, width):
    pos, length = c & 255, d & 255
    for i in range(length):
        if pos + i < width:
            b = b & ~(1 << (pos + i)) | ((a >> i) & 1) << (pos + i)
    return b


def prmt(a, b, c):
    data = (a | b << 32).to_bytes(8, "little")
    r = 0
    for i in range(4):
        s = c >> 4 * i & 15
        v = data[s & 7]
        r |= (255 * (v >> 7) if s & 8 else v) << 8 * i
    return r


def dp4a(a, b, c, sa, sb):
    def byte(v, i, s):
        x = v >> 8 * i & 255
        return x - 256 if s and x > 127 else x

    return sum(byte(a, i, sa) * byte(b, i, sb) for i in range(4)) + c


OPS32 = {  # instruction on %a %b %c -> %r, reference on 32-bit values
    "add.s32 %r, %a, %b": lambda a, b, c: a + b,
    "sub.u32 %r, %a, %b": lambda a, b, c: a - b,
    "mul.lo.s32 %r, %a, %b": lambda a, b, c: a * b,
    "mul.hi.s32 %r, %a, %b": lambda a, b, c: s32(a) * s32(b) >> 32,
    "mul.hi.u32 %r, %a, %b": lambda a, b, c: a * b >> 32,
    "mad.lo.u32 %r, %a, %b, %c": lambda a, b, c: a * b + c,
    "mad.hi.s32 %r, %a, %b, %c": lambda a, b, c: (s32(a) * s32(b) >> 32) + c,
    "sad.s32 %r, %a, %b, %c": lambda a, b, c: c + abs(s32(a) - s32(b)),
    "min.s32 %r, %a, %b": lambda a, b, c: min(s32(a), s32(b)),
    "max.u32 %r, %a, %b": lambda a, b, c: max(a, b),
    "abs.s32 %r, %a": lambda a, b, c: abs(s32(a)),
    "neg.s32 %r, %a": lambda a, b, c: -a,
    "not.b32 %r, %a": lambda a, b, c: ~a,
    "shl.b32 %r, %a, %b": lambda a, b, c: 0 if b > 31 else a << b,
    "shr.u32 %r, %a, %b": lambda a, b, c: 0 if b > 31 else a >> b,
    "shr.s32 %r, %a, %b": lambda a, b, c: s32(a) >> min(b, 31),
    "shf.l.wrap.b32 %r, %a, %b, %c": lambda a, b, c: (a | b << 32) << (c & 31) >> 32,
    "shf.r.wrap.b32 %r, %a, %b, %c": lambda a, b, c: (a | b << 32) >> (c & 31),
    "shf.l.clamp.b32 %r, %a, %b, %c": lambda a, b, c: (a | b << 32) << min(c, 32) >> 32,
    "shf.r.clamp.b32 %r, %a, %b, %c": lambda a, b, c: (a | b << 32) >> min(c, 32),
    "brev.b32 %r, %a": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "popc.b32 %r, %a": lambda a, b, c: a.bit_count(),
    "popc.b64 %r, %A": None,
    "clz.b32 %r, %a": lambda a, b, c: 32 - a.bit_length(),
    "bfind.u32 %r, %a": lambda a, b, c: a.bit_length() - 1,
    "bfind.s32 %r, %a": lambda a, b, c: (~a & M32 if a >> 31 else a).bit_length() - 1,
    "bfind.shiftamt.u32 %r, %a": lambda a, b, c: 32 - a.bit_length() if a else -1,
    "bfe.u32 %r, %a, %b, %c": lambda a, b, c: bfe(a, b, c, False, 32),
    "bfe.s32 %r, %a, %b, %c": lambda a, b, c: bfe(a, b, c, True, 32),
    "bfi.b32 %r, %a, %b, %c, 7": lambda a, b, c: bfi(a, b, c, 7, 32),
    "lop3.b32 %r, %a, %b, %c, 0xE8": lambda a, b, c: a & b | a & c | b & c,
    "lop3.b32 %r, %a, %b, %c, 0x6A": lambda a, b, c: c ^ (a & b),
    "prmt.b32 %r, %a, %b, %c": prmt,
    "dp4a.s32.s32 %r, %a, %b, %c": lambda a, b, c: dp4a(a, b, c, True, True),
    "dp4a.u32.s32 %r, %a, %b, %c": lambda a, b, c: dp4a(a, b, c, False, True),
    "bmsk.clamp.b32 %r, %a, %b": lambda a, b, c: 0 if a > 31 else (1 << min(b, 32)) - 1 << a,
    "szext.clamp.s32 %r, %a, %b": lambda a, b, c: 0 if b == 0 else bfe(a, 0, min(b, 32), True, 32),
    "cvt.s32.s8 %r, %a": lambda a, b, c: (a & 255) - 256 if a & 128 else a & 255,
    "cvt.sat.u8.s32 %r, %a": lambda a, b, c: min(255, max(0, s32(a))),
    "cvt.u32.u16 %r, %a": lambda a, b, c: a & 0xFFFF,
    "slct.b32.s32 %r, %a, %b, %c": lambda a, b, c: a if s32(c) >= 0 else b,
    "setp.lt.s32 %q, %a, %b; selp.b32 %r, 5, 6, %q": lambda a, b, c: 5 if s32(a) < s32(b) else 6,
    "setp.hi.u32 %q, %a, %b; selp.b32 %r, %a, %c, %q": lambda a, b, c: a if a > b else c,
    "setp.ge.u32 %s, %b, %c; setp.eq.and.u32 %q|%s, %a, %b, !%s; selp.b32 %r, 1, 0, %q; selp.b32 %t, 2, 0, %s; "
    "or.b32 %r, %r, %t": lambda a, b, c: (a == b and not b >= c) + 2 * (a != b and not b >= c),
    "add.cc.u32 %r, %a, %b; addc.u32 %r, %c, 0": lambda a, b, c: c + (a + b >> 32),
    "sub.cc.u32 %r, %a, %b; subc.u32 %r, %c, 0": lambda a, b, c: c - (a < b),
    "mad.lo.cc.u32 %r, %a, %b, %c; madc.hi.u32 %r, %a, %b, 0": lambda a, b, c: (
        (a * b >> 32) + ((a * b & M32) + c >> 32)
    ),
    "mov.b32 {%h, %g}, %a; mov.b32 %r, {%g, %h}": lambda a, b, c: a >> 16 | (a & 0xFFFF) << 16,
}
OPS64 = {
    "add.s64 %R, %A, %B": lambda a, b, c: a + b,
    "mul.lo.u64 %R, %A, %B": lambda a, b, c: a * b,
    "mul.hi.u64 %R, %A, %B": lambda a, b, c: a * b >> 64,
    "mul.hi.s64 %R, %A, %B": lambda a, b, c: s64(a) * s64(b) >> 64,
    "mul.wide.s32 %R, %a, %b": lambda a, b, c: s32(a) * s32(b),
    "mad.wide.u32 %R, %a, %b, %C": lambda a, b, c: (a & M32) * (b & M32) + c,
    "shl.b64 %R, %A, %b": lambda a, b, c: 0 if b & M32 > 63 else a << (b & M32),
    "shr.s64 %R, %A, %b": lambda a, b, c: s64(a) >> min(b & M32, 63),
    "brev.b64 %R, %A": lambda a, b, c: int(f"{a:064b}"[::-1], 2),
    "bfe.u64 %R, %A, %b, %c": lambda a, b, c: bfe(a, b, c, False, 64),
    "bfe.s64 %R, %A, %b, %c": lambda a, b, c: bfe(a, b, c, True, 64),
    "bfi.b64 %R, %A, %B, %c, 13": lambda a, b, c: bfi(a, b, c, 13, 64),
    "min.s64 %R, %A, %B": lambda a, b, c: min(s64(a), s64(b)),
    "cvt.s64.s32 %R, %a": lambda a, b, c: s32(a),
    "mov.b64 %R, {%b, %a}": lambda a, b, c: b & M32 | (a & M32) << 32,
    "add.cc.u64 %R, %A, %B; addc.u64 %R, %C, 0": lambda a, b, c: c + (a + b >> 64),
}


@pytest.mark.parametrize("op", [k for k, v in OPS32.items() if v])
def test_int32(op):
    a, b, c = inputs()
    got = run(op + "; cvt.u64.u32 %R, %r;", a, b, c)
    want = [OPS32[op](x & M32, y & M32, z & M32) & M32 for x, y, z in zip(a, b, c, strict=True)]
    assert got == want


@pytest.mark.parametrize("op", OPS64)
def test_int64(op):
    a, b, c = inputs()
    assert run(op + ";", a, b, c) == [OPS64[op](x, y, z) & M64 for x, y, z in zip(a, b, c, strict=True)]


@pytest.mark.parametrize(("width", "signed"), [(32, True), (32, False), (64, True), (64, False)])
def test_division(width, signed):
    a, b, c = inputs()
    b = [v if v & M32 else 3 for v in b]
    t = ("s" if signed else "u") + str(width)
    regs = "%R, %A, %B" if width == 64 else "%r, %a, %b"
    tail = "" if width == 64 else " cvt.u64.u32 %R, %r;"
    mask = M64 if width == 64 else M32
    fix = (s64 if width == 64 else s32) if signed else (lambda v: v & mask)
    assert run(f"div.{t} {regs};{tail}", a, b, c) == [
        trunc_div(fix(x & mask), fix(y & mask)) & mask for x, y in zip(a, b, strict=True)
    ]
    assert run(f"rem.{t} {regs};{tail}", a, b, c) == [
        (fix(x & mask) - trunc_div(fix(x & mask), fix(y & mask)) * fix(y & mask)) & mask
        for x, y in zip(a, b, strict=True)
    ]


FLOATS = [
    0.0,
    -0.0,
    0.5,
    1.5,
    2.5,
    -2.5,
    1e10,
    -1e10,
    3e9,
    1e-40,
    math.inf,
    -math.inf,
    math.nan,
    127.5,
    65504.0,
    70000.0,
    1 / 3,
    -0.75,
    255.0,
    2.0**31,
]


@pytest.mark.parametrize(
    ("mode", "rounding"),
    [("rni", lambda x: float(np.rint(x))), ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil)],
)
@pytest.mark.parametrize("signed", [True, False])
def test_float_to_int(mode, rounding, signed):
    values = [bits32(x) for x in FLOATS]
    got = run(f"cvt.{mode}.{'s' if signed else 'u'}32.f32 %r, %a; cvt.u64.u32 %R, %r;", values, values, values)
    lo, hi = (-(2**31), 2**31 - 1) if signed else (0, 2**32 - 1)

    def want(bits):
        x = f32(bits)
        if math.isnan(x):
            return 0
        return (lo if x < lo else hi if x > hi else min(hi, max(lo, int(rounding(x))))) & M32

    assert got == [want(v) for v in values]


def test_float_ops():
    values = [bits32(x) for x in FLOATS]
    other = values[::-1]
    third = values[3:] + values[:3]

    def check(op, f):
        got = [f32(v) for v in run(op + "; cvt.u64.u32 %R, %r;", values, other, third)]
        with np.errstate(all="ignore"):
            want = [
                float(np.float32(f(np.float32(f32(a)), np.float32(f32(b)), np.float32(f32(c)))))
                for a, b, c in zip(values, other, third, strict=True)
            ]
        np.testing.assert_array_equal(got, want)

    check("add.f32 %r, %a, %b", lambda a, b, c: a + b)
    check("mul.rn.f32 %r, %a, %b", lambda a, b, c: a * b)
    check("div.rn.f32 %r, %a, %b", lambda a, b, c: a / b)
    check("sqrt.rn.f32 %r, %a", lambda a, b, c: np.sqrt(a))
    check("min.f32 %r, %a, %b", lambda a, b, c: np.fmin(a, b))
    check("max.NaN.f32 %r, %a, %b", lambda a, b, c: np.maximum(a, b))
    check("add.sat.f32 %r, %a, %b", lambda a, b, c: 0.0 if np.isnan(a + b) else np.clip(a + b, 0, 1))
    check("cvt.rn.f32.s32 %r, %a", lambda a, b, c: np.float32(a.view(np.int32)))
    assert run("mul.ftz.f32 %r, %a, 0f3F800000; cvt.u64.u32 %R, %r;", [1], [0], [0]) == [0]
    third_down = run("div.rz.f32 %r, %a, %b; cvt.u64.u32 %R, %r;", [bits32(1)], [bits32(3)], [0])[0]
    third_up = run("div.rp.f32 %r, %a, %b; cvt.u64.u32 %R, %r;", [bits32(1)], [bits32(3)], [0])[0]
    assert (third_down, third_up) == (0x3EAAAAAA, 0x3EAAAAAB)


def test_half_conversions_exhaustive():
    """Every f16 and bf16 value survives the way through f32."""
    for kind in ("f16", "bf16"):
        for start in range(0, 65536, 16384):
            for block in range(start, start + 16384, 1024):
                values = list(range(block, block + 1024))
                back = run(
                    f"cvt.u16.u32 %h, %a; cvt.f32.{kind} %f, %h; cvt.rn.{kind}.f32 %g, %f; cvt.u64.u16 %R, %g;",
                    values,
                    values,
                    values,
                )
                quiet = 0x7FFF
                exponent = 0x7C00 if kind == "f16" else 0x7F80
                assert back == [quiet if (v & 0x7FFF) > exponent else v for v in values]


def test_unsupported_names_instruction():
    with pytest.raises(simulator.SimError, match=r"vadd4\.u32\.u32\.u32 %r"):
        run("vadd4.u32.u32.u32 %r, %a, %b, %c;", [1], [1], [1])


def test_subnormals_are_kept_when_the_caller_flushes_them():
    torch.set_flush_denormal(True)
    try:
        assert run("mul.f32 %r, %a, 0f3F800000; cvt.u64.u32 %R, %r;", [1], [0], [0]) == [1]
    finally:
        torch.set_flush_denormal(False)
