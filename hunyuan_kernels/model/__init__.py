"""A compact Hunyuan-style decoder, built of this package's operators."""

from hunyuan_kernels.model.config import Config
from hunyuan_kernels.model.decoder import Decoder, Output

__all__ = ["Config", "Decoder", "Output"]
