import sys
from pathlib import Path

import pytest
from hunyuan_kernels._C import simulator

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(params=[0, 1])
def gpu(request):
    """A simulated device with another schedule for each seed."""
    return simulator.Gpu(seed=request.param, num_sms=4)
