"""Loads ``libhunyuan_kernels.so`` and names its operator namespace; the only place that does either."""

from pathlib import Path
from typing import Any

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

#: The operators as the dispatcher knows them: ``ops.route(...)`` and so on.
ops: Any = getattr(torch.ops, NAMESPACE)


def qualified(name: str) -> str:
    """``name`` with the namespace, as ``torch.library`` wants it."""
    return f"{NAMESPACE}::{name}"
