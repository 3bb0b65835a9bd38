"""CUB's block scan, from the toolkit's headers, against prefix sums of torch."""

import pytest
import torch
from hunyuan_kernels._C import simulator
from nvcc import compile_module

from hunyuan_kernels.testing.simulated import SETTINGS

BLOCKS, THREADS, ITEMS = 3, 160, 3


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("algorithm", ["raking", "raking_memoize", "warp_scans"])
def test_block_scan(algorithm, setting):
    options = SETTINGS[setting]
    gpu = simulator.Gpu(
        async_latency=options["latency"], check_races=options["check_races"], split_warps=options["split_warps"]
    )
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-100, 100, (BLOCKS, THREADS * ITEMS), generator=generator, dtype=torch.int32)
    inclusive, exclusive, total = torch.zeros_like(values), torch.zeros_like(values), torch.zeros(BLOCKS).int()
    module = compile_module("block_scan.cu")
    gpu.launch(module, algorithm, grid=BLOCKS, block=THREADS, args=[values, inclusive, exclusive, total])
    sums = values.cumsum(1).int()
    assert torch.equal(inclusive, sums)
    assert torch.equal(exclusive, sums - values)
    assert torch.equal(total, sums[:, -1])
