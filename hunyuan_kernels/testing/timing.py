"""Timing of functions against each other in one process."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

#: Calls shorter than this get an untimed one before them: the candidate before has left other data in the caches.
_SHORT = 0.005


@dataclass(frozen=True)
class Timing:
    """Seconds of each timed call, in the order of the calls."""

    samples: tuple[float, ...]

    def _quantile(self, share: float) -> float:
        ordered = sorted(self.samples)
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        return min(self.samples)

    @property
    def p20(self) -> float:
        return self._quantile(0.2)

    @property
    def p80(self) -> float:
        return self._quantile(0.8)


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    rounds: tuple[int, int] = (3, 200),
    cold: bool = False,
) -> dict[str, Timing]:
    """Times all candidates round robin, so that a machine that slows down slows all of them.

    Every candidate is called once first; that call warms up and says how many rounds fit ``seconds``, within the bounds
    ``rounds``. One whose first call alone took longer than ``seconds`` keeps that as its only sample, unless it is the
    first candidate, the one that is judged. One that raises NotImplementedError then has no entry in the result.

    Warm (the default): caches hold what an untimed call of the same candidate leaves there. Cold: a buffer of twice the
    last level cache is written before each timed call.
    """
    first = {}
    for name, function in candidates.items():
        with suppress(NotImplementedError):
            first[name] = _seconds(function)
    judged = next(iter(candidates))
    repeated = [name for name in first if name == judged or first[name] <= seconds]
    samples: dict[str, list[float]] = {name: [] if name in repeated else [first[name]] for name in first}
    per_round = sum(first[name] * (1 if cold or first[name] > _SHORT else 2) for name in repeated)
    flush = _flush_buffer() if cold else None
    for _ in range(min(max(round(seconds / per_round), rounds[0]), rounds[1])):
        for name in repeated:
            if flush is not None:
                flush.add_(1)
            elif first[name] <= _SHORT:
                candidates[name]()
            samples[name].append(_seconds(candidates[name]))
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def last_level_cache() -> int:
    """Bytes of the largest cache of the first CPU; 64 MiB where the system does not say."""
    units = {"K": 2**10, "M": 2**20}
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max([int(size[:-1]) * units[size[-1]] for size in sizes if size[-1] in units], default=2**26)


def _flush_buffer() -> torch.Tensor:
    return torch.zeros(2 * last_level_cache() // 4, dtype=torch.int32)
