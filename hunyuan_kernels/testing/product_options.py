"""Options of the plans of grouped GEMMs that are off until they were measured on hardware."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from hunyuan_kernels._ops import ops

OPTIONS = ("multicast", "column_panels")

#: Of the plans that are shown; names with commas between them.
forced_options: ContextVar[str] = ContextVar("forced_options", default="")


@contextmanager
def product_options(*names: str) -> Iterator[None]:
    """Forces options of the plans of grouped GEMMs of the calling thread, on a GPU or the simulated one.

    Args:
        names: of ``OPTIONS``

    Raises:
        RuntimeError: there is no such option.
    """
    before, chosen = forced_options.get(), ",".join(names)
    ops.force_product_options(chosen)
    token = forced_options.set(chosen)
    try:
        yield
    finally:
        forced_options.reset(token)
        ops.force_product_options(before)
