"""Runs every CPU path that the machine has, not only the best one."""

from collections.abc import Iterator
from contextlib import contextmanager

from hunyuan_kernels._ops import ops


def supported_instruction_sets() -> list[str]:
    """Names of the instruction sets that this CPU can run, best first; ``"portable"`` is always last."""
    return ops.supported_instruction_sets().split(",")


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Forces the CPU backend of the calling thread to one instruction set.

    Raises:
        RuntimeError: this build does not have it, or this CPU cannot run it.
    """
    ops.force_instruction_set(name)
    try:
        yield
    finally:
        ops.force_instruction_set("")
