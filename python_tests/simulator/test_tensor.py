import struct

import numpy as np
import pytest
import torch
from hunyuan_kernels._C import simulator
from nvcc import compile_module


@pytest.fixture(scope="module")
def mod():
    return compile_module("tensor.cu")


def map2d(t, dtype, box, swizzle=0):
    return simulator.TensorMap(
        dtype, t, [t.shape[1], t.shape[0]], [t.stride(0) * t.element_size()], box, swizzle=swizzle
    )


def swizzled(offset, span):
    mask = {0: 0, 32: 1, 64: 3, 128: 7}[span]
    return offset ^ (((offset >> 7) & mask) << 4)


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (16, 40), (-8, -3), (56, 60)])
def test_tma_roundtrip(gpu, mod, swizzle, x, y):
    source = torch.arange(64 * 64, dtype=torch.int32).to(torch.int16).reshape(64, 64)
    target = torch.full((64, 64), -1, dtype=torch.int16)
    inner, rows = (swizzle or 64) // 2, 24
    raw = torch.zeros(inner * 2 * rows, dtype=torch.uint8)
    gpu.launch(
        mod,
        "tma_roundtrip",
        grid=1,
        block=128,
        smem_bytes=16384,
        args=[
            map2d(source, "u16", [inner, rows], swizzle),
            map2d(target, "u16", [inner, rows], swizzle),
            raw,
            raw.numel(),
            x,
            y,
        ],
    )
    padded = torch.zeros(64 + 128, 64 + 128, dtype=torch.int16)
    padded[64:128, 64:128] = source
    box = padded[64 + y : 64 + y + rows, 64 + x : 64 + x + inner].contiguous()
    linear = box.view(torch.uint8).flatten().numpy()
    want = np.zeros_like(linear)
    for i in range(0, linear.size, 16):
        at = swizzled(i, swizzle)
        want[at : at + 16] = linear[i : i + 16]
    assert np.array_equal(raw.numpy(), want)
    inside = torch.full((64, 64), -1, dtype=torch.int16)
    r0, r1, c0, c1 = max(y, 0), min(64, y + rows), max(x, 0), min(64, x + inner)
    inside[r0:r1, c0:c1] = source[r0:r1, c0:c1]
    assert torch.equal(target, inside)


LAYOUT = {0: 0, 128: 1, 64: 2, 32: 3}


def plan(swizzle, mn_major):
    """Descriptor without start address, TMA boxes, byte offsets of the four depth steps of a 64 x 128-byte operand."""
    span = swizzle or 16
    if not mn_major:
        boxes, inner, box_bytes = 128 // span, span, 64 * span
        leading, stride = (64 * 16, 128) if swizzle == 0 else (16, 8 * span)
        steps = [(32 * k // span) * box_bytes + 32 * k % span for k in range(4)]
    else:
        boxes, inner, box_bytes = 128 // span, span, 64 * span
        leading, stride = (128, box_bytes) if swizzle == 0 else (box_bytes, 8 * span)
        steps = [16 * k * span for k in range(4)]
    descriptor = (leading >> 4) << 16 | (stride >> 4) << 32 | LAYOUT[swizzle] << 62
    return descriptor, boxes, inner, box_bytes, steps


def plan_bytes(p, element_bytes):
    descriptor, boxes, inner, box_bytes, steps = p
    return struct.pack("<Qiii4i4x", descriptor, boxes, inner // element_bytes, box_bytes, *steps)


@pytest.mark.parametrize("swizzle_a", [0, 32, 64, 128])
@pytest.mark.parametrize("swizzle_b", [0, 32, 64, 128])
@pytest.mark.parametrize("major", ["kk", "mk", "kn", "mn"])
def test_wgmma_bf16(mod, swizzle_a, swizzle_b, major):
    gpu = simulator.Gpu(seed=swizzle_a + swizzle_b)
    a, b = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    want = a.double() @ b.double().T
    ta, tb = major[0] == "m", major[1] == "n"
    sa, sb = (a.T.contiguous() if ta else a), (b.T.contiguous() if tb else b)
    pa, pb = plan(swizzle_a, ta), plan(swizzle_b, tb)
    out = torch.zeros(64, 64)
    report = gpu.launch(
        mod,
        "tile_bf16_" + major,
        grid=1,
        block=128,
        smem_bytes=16384,
        args=[
            map2d(sa, "bf16", [pa[2] // 2, 64], swizzle_a),
            map2d(sb, "bf16", [pb[2] // 2, 64], swizzle_b),
            out,
            plan_bytes(pa, 2),
            plan_bytes(pb, 2),
        ],
    )
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-4)
    assert sum(report.counters["mma_flops"].values()) == 2 * 64 * 64 * 64


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_wgmma_e4m3(gpu, mod, swizzle):
    a, b = torch.randn(64, 128).to(torch.float8_e4m3fn), torch.randn(64, 128).to(torch.float8_e4m3fn)
    p = plan(swizzle, False)
    out = torch.zeros(64, 64)
    args = [
        map2d(a, "e4m3", [p[2], 64], swizzle),
        map2d(b, "e4m3", [p[2], 64], swizzle),
        out,
        plan_bytes(p, 1),
        plan_bytes(p, 1),
    ]
    gpu.launch(mod, "tile_e4m3", grid=1, block=128, smem_bytes=16384, args=args)
    want = a.double() @ b.double().T
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-4)
    gpu.fp8_accumulator_bits = 14
    gpu.launch(mod, "tile_e4m3", grid=1, block=128, smem_bytes=16384, args=args)
    error = (out.double() - want).abs().max().item()
    assert 1e-6 < error < 0.1


@pytest.mark.parametrize("kernel", ["registers_ok", "one_warp_reuses"])
def test_wgmma_registers(gpu, mod, kernel):
    gpu.check_races = True
    a, b = torch.randn(64, 16).bfloat16(), torch.randn(64, 16).bfloat16()
    out = torch.zeros(64, 64)
    gpu.launch(mod, kernel, grid=1, block=128, args=[a, b, out])
    torch.testing.assert_close(out.double(), a.double() @ b.double().T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("bug_no_proxy_fence", "without a following fence.proxy.async"),
        ("bug_early_read", "accumulator register"),
        ("bug_overwrite", "overwritten while an unfinished"),
    ],
)
def test_wgmma_bugs(gpu, mod, kernel, message):
    a, b = torch.randn(64, 16).bfloat16(), torch.randn(64, 16).bfloat16()
    with pytest.raises(simulator.SimError, match=message):
        gpu.launch(mod, kernel, grid=1, block=128, args=[a, b, torch.zeros(64, 64)])


def test_multicast_dsmem(gpu, mod):
    x = torch.randn(64, 16)
    out = torch.zeros(4)
    gpu.launch(mod, "multicast", grid=(4,), block=(32,), cluster=(2, 1, 1), args=[map2d(x, "f32", [16, 16]), out])
    want = [x[:32].sum().item() * 3] * 2 + [x[32:].sum().item() * 3] * 2
    np.testing.assert_allclose(out.numpy(), want, rtol=1e-4, atol=1e-3)


def test_ring(gpu, mod):
    x = torch.randn(320, 32)
    out = torch.zeros(1)
    gpu.launch(mod, "ring_ok", grid=1, block=160, args=[map2d(x, "f32", [32, 32]), out, 10])
    assert abs(out.item() - x.sum().item()) < 1e-2


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("bug_ring_deadlock", "deadlock"),
        ("bug_ring_overrun", "in flight|exceeds the pending count|deadlock"),
        ("bug_ring_bytes", "deadlock|in flight|exceeds"),
    ],
)
def test_ring_bugs(gpu, mod, kernel, message):
    with pytest.raises(simulator.SimError, match=message):
        gpu.launch(
            mod, kernel, grid=1, block=160, args=[map2d(torch.randn(320, 32), "f32", [32, 32]), torch.zeros(1), 10]
        )


def test_ldmatrix_mma(gpu, mod):
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 8).bfloat16()
    out = torch.zeros(16, 8)
    gpu.launch(mod, "ldmatrix_mma", grid=1, block=32, args=[a, b, out])
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)


def test_no_wait(mod):
    gpu = simulator.Gpu(seed=1)
    gpu.async_latency = 100000
    with pytest.raises(simulator.SimError, match=r"in flight|uninitialized"):
        gpu.launch(
            mod, "bug_no_wait", grid=1, block=128, args=[map2d(torch.randn(32, 32), "f32", [32, 32]), torch.zeros(128)]
        )


def test_mbarrier_uninit(gpu, mod):
    with pytest.raises(simulator.SimError, match="no initialized mbarrier"):
        gpu.launch(mod, "bug_mbarrier_uninit", grid=1, block=32, args=[torch.zeros(1)])


def test_bulk_add(gpu, mod):
    x, out = torch.randn(256), torch.ones(256)
    gpu.launch(mod, "bulk_add", grid=1, block=64, smem_bytes=1024, args=[x, out, 256])
    torch.testing.assert_close(out, 1 + 2 * x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": [512, 1]}, "box dimension"),
        ({"strides": [72 * 2 + 4]}, "multiple of 16"),
        ({"offset": 8}, "aligned"),
        ({"swizzle": 32}, "swizzle span"),
        ({"dims": [64, 65]}, "more memory"),
    ],
)
def test_tensor_map_checks(change, message):
    args = {
        "dtype": "bf16",
        "tensor": torch.zeros(64, 64).bfloat16(),
        "dims": [64, 64],
        "strides": [128],
        "box": [64, 64],
        "swizzle": 128,
    }
    args.update(change)
    with pytest.raises(ValueError, match=message):
        simulator.TensorMap(**args)


def test_races(gpu, mod):
    gpu.check_races = True
    x, out = torch.randn(320, 32), torch.zeros(1)
    gpu.launch(mod, "ring_ok", grid=1, block=160, args=[map2d(x, "f32", [32, 32]), out, 10])
    gpu.launch(
        mod,
        "multicast",
        grid=(4,),
        block=(32,),
        cluster=(2, 1, 1),
        args=[map2d(torch.randn(64, 16), "f32", [16, 16]), torch.zeros(4)],
    )
    a, b = torch.randn(64, 16).bfloat16(), torch.randn(64, 16).bfloat16()
    gpu.launch(mod, "registers_ok", grid=1, block=128, args=[a, b, torch.zeros(64, 64)])


@pytest.mark.parametrize(
    ("rank", "dims", "box", "at"),
    [
        (1, [100], [32], [80]),
        (3, [20, 6, 5], [8, 4, 3], [16, -1, 3]),
        (5, [12, 4, 3, 5, 2], [8, 2, 2, 3, 2], [4, 3, -1, 3, 0]),
    ],
)
def test_tma_ranks(gpu, mod, rank, dims, box, at):
    source, target = torch.randn(*dims[::-1]), torch.ones(*dims[::-1])
    strides = [s * 4 for s in source.stride()[::-1][1:]]
    n = int(np.prod(box))
    raw = torch.full((n,), -7.0)
    maps = [simulator.TensorMap("f32", t, dims, strides, box) for t in (source, target)]
    gpu.launch(
        mod,
        f"tma_rank{rank}",
        grid=1,
        block=64,
        smem_bytes=4096,
        args=[*maps, raw, n * 4, struct.pack("<5i", *(at + [0] * (5 - rank)))],
    )
    want, after = torch.zeros(*box[::-1]), torch.ones_like(target)
    for index in np.ndindex(*box[::-1]):
        where = tuple(i + c for i, c in zip(index, at[::-1], strict=True))
        if all(0 <= w < d for w, d in zip(where, dims[::-1], strict=True)):
            want[index] = source[where]
            after[where] += source[where]
    assert torch.equal(raw, want.flatten())
    assert torch.equal(target, after)


def test_named_barriers(gpu, mod):
    gpu.check_races = True
    out = torch.zeros(128, dtype=torch.int32)
    gpu.launch(mod, "named_barriers", grid=1, block=128, args=[out])
    other = [i // 64 * 64 + (i + 32) % 64 for i in range(128)]
    assert out.tolist() == [o * 1000 + sum(v % 3 == 0 for v in other) for o in other]
