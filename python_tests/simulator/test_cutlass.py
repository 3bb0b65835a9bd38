"""Kernels of CUTLASS 3.x, unmodified and launched by CUTLASS's own host code through the driver table, simulated.

They are an oracle from outside: who wrote them has never seen the simulator, and they run on Hopper GPUs every day."""

import ctypes

import pytest
import torch
from cutlass_headers import ROOT, SOURCES, compile_with_cutlass
from hunyuan_kernels._C import driver, simulator

from hunyuan_kernels.testing.compare import compare_bounded
from hunyuan_kernels.testing.simulated import SETTINGS
from python_tests.host.driver_client import Driver

SMS = 4
#: Tiles of 64 or 128 x 128: cut off on both sides, several for each block, and K that ends within a step.
M, N, K = 136, 264, 464


@pytest.fixture(scope="module")
def library():
    """The host code as a shared library and the PTX of the same compilation; kept in build/ until a source changes."""
    sources = [SOURCES / "gemm.cu", SOURCES / "runtime.cpp"]
    binary = compile_with_cutlass(
        "libgemm.so",
        [*sources, *sorted((ROOT / "csrc/driver").glob("*.h"))],
        lambda folder: [
            *["-std=c++20", "-O1", "-shared", "-Xcompiler", "-fPIC", "-cudart", "none"],
            *["-gencode", "arch=compute_90a,code=compute_90a", "--expt-relaxed-constexpr"],
            *["--keep", "--keep-dir", str(folder), f"-I{ROOT / 'csrc'}", *map(str, sources)],
        ],
    )
    loaded = ctypes.CDLL(str(binary))
    loaded.run_gemm.argtypes = [ctypes.c_char_p, *[ctypes.c_int] * 3, *[ctypes.c_void_p] * 3, ctypes.c_int]
    loaded.use_driver.argtypes = [ctypes.c_size_t, ctypes.c_char_p]
    return loaded, binary.with_name("gemm.ptx").read_bytes()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    ("kernel", "dtype", "tile_rows", "cluster"),
    [
        ("bf16 pingpong", torch.bfloat16, 64, (1, 1, 1)),
        ("bf16 cooperative", torch.bfloat16, 128, (2, 1, 1)),
        ("e4m3 pingpong", torch.float8_e4m3fn, 64, (1, 1, 1)),
        ("e4m3 cooperative", torch.float8_e4m3fn, 128, (1, 2, 1)),
    ],
)
def test_gemm(library, kernel, dtype, tile_rows, cluster, setting):
    loaded, ptx = library
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, K, generator=generator).to(dtype) for rows in (M, N))
    d = torch.full((M, N), float("nan"), dtype=torch.bfloat16)
    options = SETTINGS[setting]
    gpu = driver.SimulatedGpu(
        simulator.Gpu(
            num_sms=SMS,
            async_latency=options["latency"],
            check_races=options["check_races"],
            split_warps=options["split_warps"],
        )
    )
    gpu.make_current()
    table = Driver()
    for name, tensor, read_only in (("a", a, True), ("b", b, True), ("d", d, False)):
        table.declare_memory(tensor.data_ptr(), tensor.numel() * tensor.element_size(), name.encode(), read_only)
    assert loaded.use_driver(driver.table_address(), ptx) == 0
    assert loaded.run_gemm(kernel.encode(), M, N, K, a.data_ptr(), b.data_ptr(), d.data_ptr(), SMS) == 0
    table.run_queue()

    a, b = a.double(), b.double()
    comparison = compare_bounded(kernel, d, a @ b.T, a.abs() @ b.abs().T)
    assert comparison, comparison.message
    (launch,) = gpu.completed
    assert launch.cluster == cluster
    flops = sum(launch.report.counters["mma_flops"].values())
    # Whole tiles are multiplied: M, N and K rounded up, and tiles to whole clusters.
    step = 64 if dtype is torch.bfloat16 else 128
    tiles = [
        -(-length // (size * per)) * per
        for length, size, per in zip((M, N), (tile_rows, 128), cluster[:2], strict=True)
    ]
    assert flops == 2 * tiles[0] * tile_rows * tiles[1] * 128 * -(-K // step) * step
