"""Mixture-of-experts kernels for the Hunyuan-Large architecture as PyTorch operators."""

from hunyuan_kernels._version import __version__

__all__ = ["__version__"]
