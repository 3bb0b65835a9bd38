"""Peaks of memory in tests."""

from collections.abc import Callable

import pytest

from hunyuan_kernels.testing.memory import MemoryProbe


def measured_peaks(*prepare: Callable[[], Callable[[], object]]) -> list[int]:
    """:meth:`MemoryProbe.peak` of each, in one process, in order; skips the test where the system keeps no mark."""
    with MemoryProbe() as probe:
        peaks = [probe.peak(each) for each in prepare]
    if None in peaks:
        pytest.skip("this system keeps no high-water mark of memory")
    return peaks
