"""The memory that a call needs, measured in a process of its own.

In a process that has worked before, a call finds freed memory to use again, and shows too little. The child here has
done nothing else, returns freed memory at once (allocations of 64 KiB and more get pages of their own), and calls in a
fresh thread, which has no scratch from an earlier call.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from hunyuan_kernels.testing.spec import all_specs

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: Of glibc: from this size on an allocation is mapped by itself and unmapped when it is freed.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}


def _resident(mark: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(mark))
    return int(line.split()[1]) * 1024


def _rise(prepare: Callable[[], Callable[[], object]]) -> int:
    function = prepare()
    risen = [0]

    def call() -> None:
        _CLEAR.write_text("5")  # resets the high-water mark to what is resident now
        before = _resident("VmRSS:")
        result = function()
        risen[0] = max(0, _resident("VmHWM:") - before)
        del result

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return risen[0]


def _prepare_case(op: str, preset: str | None, label: str) -> Callable[[], object]:
    spec = next(spec for spec in all_specs() if spec.name == op)
    case = next(case for case in spec.bench_cases(preset) if case.label == label)
    return partial(spec.function, **case.make(0))


class MemoryProbe:
    """Runs calls in one child process; a context manager."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "MemoryProbe":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def peak(self, prepare: Callable[[], Callable[[], object]]) -> int | None:
        """Bytes by which the child's resident memory rises above its level before the call, at its highest point.

        ``prepare``, importable by name, runs in the child and returns the function to be measured; what it allocates
        does not count. Outputs, temporary tensors and scratch of the library do; Linux counts pages in batches, which
        leaves an error of up to some 100 KiB. None where the system keeps no such mark (anything but Linux).
        """
        if sys.platform != "linux" or not _CLEAR.exists():
            return None
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        before = {name: os.environ.get(name) for name in _ALLOCATOR}
        os.environ.update(_ALLOCATOR)  # the child starts with the first task, and inherits this
        try:
            task = self._pool.submit(_rise, prepare)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        return task.result()

    def peak_of_case(self, op: str, preset: str | None, label: str) -> int | None:
        """:meth:`peak` of a benchmark case."""
        return self.peak(partial(_prepare_case, op, preset, label))
