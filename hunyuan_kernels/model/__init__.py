"""A compact Hunyuan-style decoder, built of this package's operators."""

from hunyuan_kernels.model.cache import KeyValueCache
from hunyuan_kernels.model.config import PRESETS, Config, preset
from hunyuan_kernels.model.decoder import Decoder, Output
from hunyuan_kernels.model.generate import Generated, generate

__all__ = ["PRESETS", "Config", "Decoder", "Generated", "KeyValueCache", "Output", "generate", "preset"]
