"""Where ops run in tests: on each instruction set of this CPU and, where an op has CUDA kernels, on the simulated GPU
under each named setting with two seeds. A backend is a function that makes a context manager."""

from functools import partial

import pytest

from hunyuan_kernels._ops import ops
from hunyuan_kernels.simulator import simulated_gpu
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets
from hunyuan_kernels.testing.simulated import SETTINGS

needs_device_code = pytest.mark.skipif(
    not ops.device_stems(), reason="this build has no device code to simulate: no nvcc was found when it was made"
)

CPU = [pytest.param(partial(instruction_set, name), id=name) for name in supported_instruction_sets()]
SIMULATED = [
    pytest.param(
        partial(simulated_gpu, seed=seed, **options), id=f"simulated, {setting}, seed {seed}", marks=needs_device_code
    )
    for setting, options in SETTINGS.items()
    for seed in (0, 1)
]
