"""Weights that stay in FP8: published FP8 checkpoints used as they are, without dequantizing them."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.model.decoder import Decoder
from hunyuan_kernels.model.linear import Fp8Weight, Linear
from hunyuan_kernels.model.moe import MoE

FP8 = torch.float8_e4m3fn
#: What the GEMMs read, as :class:`hunyuan_kernels.Fp8Experts` has it.
ACTIVATIONS = ("none", "static")


class Part(NamedTuple):
    """A quantized tensor of a checkpoint: where it lies in the model, and its scales."""

    parameter: str
    place: tuple[int | slice, ...]
    weight_scale: float
    input_scale: float


class _Scales(NamedTuple):
    """Of one parameter."""

    rows: Tensor
    input: Tensor


def _scales(model: Decoder, parts: Iterable[Part]) -> dict[str, _Scales]:
    """A weight scale for each row of a parameter; one input scale, the largest of its parts (no part saturates)."""
    found: dict[str, _Scales] = {}
    for part in parts:
        if part.parameter not in found:
            shape = model.get_parameter(part.parameter).shape[:-1]
            found[part.parameter] = _Scales(torch.empty(shape), torch.zeros(()))
        scales = found[part.parameter]
        scales.rows[part.place] = part.weight_scale
        scales.input.clamp_(min=part.input_scale)
    return found


def use_fp8(model: Decoder, parts: Mapping[str, Part], activations: str) -> None:
    """Makes the layers compute with their parameters, which hold e4m3 values, and with the scales of ``parts``.

    ``activations="static"`` rounds inputs to e4m3 under the published scales, ``"none"`` leaves them as they are.
    """
    scales = _scales(model, parts.values())
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            rows, input_scale = scales[f"{name}.weight"]
            module.fp8 = Fp8Weight(module.weight.detach(), rows, input_scale if activations == "static" else None)
        elif isinstance(module, MoE):
            module.fp8 = _experts(module, "experts", name, scales, activations)
            module.shared_fp8 = _experts(module, "shared", name, scales, activations)
    model.fp8_scales = {name: (part.weight_scale, part.input_scale) for name, part in parts.items()}


def _experts(module: MoE, kind: str, name: str, scales: Mapping[str, _Scales], activations: str) -> hk.Fp8Experts:
    matrices = [f"{kind}_{matrix}" for matrix in ("gate_up", "down")]
    gate_up, down = (module.get_parameter(matrix).detach() for matrix in matrices)
    of_gate_up, of_down = (scales[f"{name}.{matrix}"] for matrix in matrices)
    experts = hk.Fp8Experts(gate_up, down, of_gate_up.rows, of_down.rows, activations)
    if kind == "shared":  # one expert
        experts = experts._replace(**{field: getattr(experts, field).unsqueeze(0) for field in experts._fields[:4]})
    if activations == "static":
        experts = experts._replace(input_scale=of_gate_up.input, intermediate_scale=of_down.input)
    return experts
