"""Loads ``libhunyuan_kernels.so`` and names its operator namespace; the only place that does either."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

NAMESPACE = "hunyuan_kernels"
LIBRARY = Path(__file__).with_name("libhunyuan_kernels.so")


def _load() -> None:
    if not LIBRARY.is_file():
        raise ImportError(
            f"hunyuan_kernels: {LIBRARY} is missing: the package is not built. From a clone run ./dev setup; a wheel "
            "contains it."
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        try:
            from hunyuan_kernels._C import build_information

            built_for = build_information()["torch"]
        except ImportError:
            built_for = "an unknown version"
        reason = error.__cause__ or error  # torch's own message leaves the loader's out
        raise ImportError(
            f"hunyuan_kernels: {LIBRARY.name} was built with the headers of torch {built_for} and does not load in "
            f"torch {torch.__version__} (2.10 or newer is needed): {reason}. Install such a torch, or build "
            "again in this environment (./dev setup, or pip install --no-build-isolation .)."
        ) from error


_load()

#: Threads that are inside ``simulated_gpu``. What is composed of ops there and one call on a CPU looks at it: the
#: tensors are on the CPU in both cases.
simulating = 0

#: The operators as the dispatcher knows them: ``ops.route(...)`` and so on.
ops: Any = getattr(torch.ops, NAMESPACE)


def qualified(name: str) -> str:
    """``name`` with the namespace, as ``torch.library`` wants it; refuses what the library does not have."""
    if not hasattr(ops, name):
        raise ImportError(
            f"hunyuan_kernels: {LIBRARY} has no operator {name!r}: it was built from other sources than the Python "
            "files beside it. Build again (./dev setup, or pip install --no-build-isolation .)."
        )
    return f"{NAMESPACE}::{name}"


def mark_written(tensor: torch.Tensor) -> None:
    """Lets autograd notice that an op wrote into ``tensor``: the dispatcher leaves that to the ops of a library."""
    if not torch.compiler.is_compiling():  # there the op is made functional
        torch.autograd.graph.increment_version(tensor)


class MissingKernelError(NotImplementedError):
    """An op was called for a GPU, real or simulated, and has no CUDA kernel."""


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise MissingKernelError(
            f"{name}: runs on the CPU only, it has no CUDA kernel yet. Call it with CPU tensors (.cpu()), and outside "
            "simulated_gpu()"
        )

    return refuse


def _cpu_only() -> frozenset[str]:
    names = (
        name.removeprefix(f"{NAMESPACE}::")
        for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
        if name.startswith(f"{NAMESPACE}::") and not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    )
    return frozenset(names)


#: The ops that have a kernel for the CPU and none for CUDA, as the library registers them.
CPU_ONLY = _cpu_only()

_refusals = torch.library.Library(NAMESPACE, "IMPL", "CUDA")  # the registrations last as long as this object
for _name in CPU_ONLY:
    _refusals.impl(_name, _refusal(_name))
