"""A compact Hunyuan-style decoder, built of this package's operators."""

from hunyuan_kernels.model.cache import KeyValueCache
from hunyuan_kernels.model.config import PRESETS, Config, preset
from hunyuan_kernels.model.decoder import Decoder, Output

__all__ = ["PRESETS", "Config", "Decoder", "KeyValueCache", "Output", "preset"]
