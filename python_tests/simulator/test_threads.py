import numpy as np
import pytest
import torch
from hunyuan_kernels._C import simulator
from nvcc import compile_module


@pytest.fixture(scope="module")
def mod():
    return compile_module("basic.cu")


def test_saxpy(gpu, mod):
    n = 1000
    x, y = torch.randn(n), torch.randn(n)
    want = 1.5 * x + y
    report = gpu.launch(mod, "saxpy", grid=(4,), block=(256,), args=[y, x, 1.5, n])
    torch.testing.assert_close(y, want, rtol=1e-6, atol=1e-6)
    assert report.counters["global_load_bytes"] == 2 * 4 * n
    assert "saxpy" in str(report)


def test_block_sum(gpu, mod):
    x = torch.rand(5000)
    out = torch.zeros(1)
    gpu.launch(mod, "block_sum", grid=(3,), block=(128,), args=[x, out, 5000])
    assert abs(out.item() - x.sum().item()) < 1e-2


def test_histogram(gpu, mod):
    x = torch.randint(0, 50, (4000,), dtype=torch.int32)
    bins = torch.zeros(50, dtype=torch.int32)
    gpu.launch(mod, "histogram", grid=(4,), block=(96,), smem_bytes=200, args=[x, bins, 4000, 50])
    assert torch.equal(bins.long(), torch.bincount(x.long(), minlength=50))


def test_divergent(gpu, mod):
    degree = np.arange(256, dtype=np.int32)
    out = np.zeros(256, np.float32)
    gpu.launch(mod, "divergent", grid=(2,), block=(128,), args=[out, degree])

    def want(d):
        if d % 5 == 0:
            r = 0.0
            for i in range(d):
                r = r * 0.5 + i
            return r
        return [0, np.sin(d), np.log(1.0 + d), np.exp(-0.1 * d), d % 7 / 3.0][d % 5]

    np.testing.assert_allclose(out, [want(int(d)) for d in degree], rtol=2e-5, atol=1e-6)


def test_conversions(gpu, mod):
    x = torch.cat(
        [
            torch.randn(500) * 10,
            torch.tensor(
                [0.0, -0.0, 1e-8, 448.0, 464.0, 500.0, 60000.0, 1e9, -1e9, 0.0009765625, 2.5, 3.5, 1e-3, -1e-4]
            ),
        ]
    )
    n = x.numel()
    b, h = torch.zeros(n, dtype=torch.bfloat16), torch.zeros(n, dtype=torch.float16)
    e4, e5 = torch.zeros(n, dtype=torch.uint8), torch.zeros(n, dtype=torch.uint8)
    i32, back = torch.zeros(n, dtype=torch.int32), torch.zeros(n)
    gpu.launch(mod, "conversions", grid=((n + 63) // 64,), block=(64,), args=[x, b, h, e4, e5, i32, back, n])
    assert torch.equal(b, x.bfloat16())
    assert torch.equal(h, x.half())
    clamped = x.clamp(-448, 448)
    assert torch.equal(e4, clamped.to(torch.float8_e4m3fn).view(torch.uint8))
    assert torch.equal(back, clamped.to(torch.float8_e4m3fn).float())
    assert torch.equal(e5, x.clamp(-57344, 57344).to(torch.float8_e5m2).view(torch.uint8))
    assert torch.equal(i32, torch.round(x.double()).clamp(-(2**31), 2**31 - 1).int())


def test_spin_lock(gpu, mod):
    lock, value = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    gpu.launch(mod, "spin_lock", grid=(2,), block=(64,), args=[lock, value])
    assert value.item() == 128


def test_grid_barrier(gpu, mod):
    counter, data = torch.zeros(1, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    gpu.launch(mod, "grid_barrier", grid=(4,), block=(64,), args=[counter, data])
    assert data[4:].tolist() == [10] * 4


def test_printf(gpu, mod):
    assert gpu.launch(mod, "hello", grid=1, block=32, args=[2]).output.count("of block: 0.") == 2


@pytest.mark.parametrize(
    ("kernel", "block", "smem", "args", "message"),
    [
        ("bug_oob", 32, 0, lambda: [torch.zeros(40), 16], "out-of-bounds global store"),
        ("bug_uninit", 32, 0, lambda: [torch.zeros(64)], "uninitialized shared memory"),
        ("bug_deadlock", 64, 0, lambda: [torch.zeros(64, dtype=torch.int32)], "deadlock"),
        ("bug_misaligned", 1, 0, lambda: [torch.zeros(64, dtype=torch.int8)], "misaligned"),
        ("bug_smem_oob", 1, 64, lambda: [torch.zeros(64, dtype=torch.int32), 16], "out-of-bounds shared"),
    ],
)
def test_bugs(gpu, mod, kernel, block, smem, args, message):
    with pytest.raises(simulator.SimError, match=message) as error:
        gpu.launch(mod, kernel, grid=1, block=block, smem_bytes=smem, args=args())
    assert kernel in str(error.value)


def test_grid_barrier_needs_residency(mod):
    gpu = simulator.Gpu(seed=0, num_sms=2)
    gpu.livelock_instructions = 200_000
    with pytest.raises(simulator.SimError, match="livelock"):
        gpu.launch(
            mod,
            "grid_barrier",
            grid=(4,),
            block=(64,),
            args=[torch.zeros(1, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)],
        )


def test_races(gpu, mod):
    gpu.check_races = True
    gpu.check_uninitialized_shared = False
    x, bins = torch.randint(0, 50, (4000,), dtype=torch.int32), torch.zeros(50, dtype=torch.int32)
    gpu.launch(mod, "histogram", grid=(4,), block=(96,), smem_bytes=200, args=[x, bins, 4000, 50])
    gpu.launch(mod, "block_sum", grid=(3,), block=(128,), args=[torch.rand(5000), torch.zeros(1), 5000])
    with pytest.raises(simulator.SimError, match="data race on shared address"):
        gpu.launch(mod, "bug_race", grid=1, block=64, args=[torch.zeros(64, dtype=torch.int32)])


def test_launch_together(mod):
    memory, outs = (
        [torch.zeros(2, dtype=torch.int32) for _ in range(2)],
        [torch.zeros(1, dtype=torch.int32) for _ in range(2)],
    )
    launches = [
        {
            "gpu": simulator.Gpu(seed=r),
            "module": mod,
            "kernel": "exchange",
            "grid": 1,
            "block": 32,
            "args": [memory[r], memory[1 - r], r, outs[r]],
        }
        for r in range(2)
    ]
    assert len(simulator.launch_together(launches)) == 2
    assert [o.item() for o in outs] == [101, 100]


def test_exchange_alone_hangs(mod):
    gpu = simulator.Gpu()
    gpu.livelock_instructions = 100_000
    with pytest.raises(simulator.SimError, match="livelock"):
        gpu.launch(
            mod,
            "exchange",
            grid=1,
            block=32,
            args=[
                torch.zeros(2, dtype=torch.int32),
                torch.zeros(2, dtype=torch.int32),
                0,
                torch.zeros(1, dtype=torch.int32),
            ],
        )


def test_split_warps(mod):
    def attempt(seed, fixed):
        gpu = simulator.Gpu(seed=seed)
        gpu.split_warps = True
        out = torch.zeros(1, dtype=torch.int32)
        gpu.launch(mod, "bug_no_syncwarp", grid=(8,), block=(32,), args=[out, fixed])
        return out.item()

    def outcome(seed):
        try:
            return str(attempt(seed, 0))
        except simulator.SimError as error:
            return str(error)

    assert all(attempt(seed, 1) == 496 for seed in range(20))
    outcomes = [outcome(seed) for seed in range(20)]
    assert any("uninitialized" in text for text in outcomes)
    for seed in range(5):
        gpu = simulator.Gpu(seed=seed)
        gpu.split_warps = gpu.check_races = True
        x, out = torch.rand(5000), torch.zeros(1)
        gpu.launch(mod, "block_sum", grid=(3,), block=(128,), args=[x, out, 5000])
        assert abs(out.item() - x.sum().item()) < 1e-2
