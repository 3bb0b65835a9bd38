"""Mixture-of-experts kernels for the Hunyuan-Large architecture as PyTorch operators."""

from hunyuan_kernels import ops as _ops_of_stems
from hunyuan_kernels._version import __version__
from hunyuan_kernels.ops import *  # noqa: F403 (its __all__ is the public list, kept in one place)
from hunyuan_kernels.simulator import simulated_gpu

__all__ = ["__version__", "simulated_gpu"]
__all__ += _ops_of_stems.__all__
