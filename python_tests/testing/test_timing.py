"""The timing that benchmarks rest on, with functions whose cost is known."""

import time

import pytest

from hunyuan_kernels.testing import timing
from hunyuan_kernels.testing.timing import Timing, interleave


def test_quantiles():
    samples = Timing((5.0, 1.0, 2.0, 3.0, 4.0))
    assert (samples.best, samples.p20, samples.median, samples.p80) == pytest.approx((1.0, 1.8, 3.0, 4.2))
    single = Timing((7.0,))
    assert single.p20 == single.median == single.p80 == 7.0


def recorder(calls, name, seconds=0.0):
    def function():
        calls.append(name)
        time.sleep(seconds)

    return function


@pytest.fixture
def long_calls(monkeypatch):
    """No call counts as short, so that each timed call is one call."""
    monkeypatch.setattr(timing, "_SHORT", 0.0)


def test_candidates_take_turns(long_calls):
    calls = []
    result = interleave({name: recorder(calls, name, 0.001) for name in "abc"}, rounds=(4, 4))
    assert calls == ["a", "b", "c"] * 5  # the first round warms up
    assert [len(result[name].samples) for name in "abc"] == [4, 4, 4]
    assert all(sample >= 0.001 for name in "abc" for sample in result[name].samples)


def test_short_calls_are_preceded_by_an_untimed_one():
    calls = []
    interleave({name: recorder(calls, name) for name in "ab"}, rounds=(3, 3))
    assert calls == ["a", "b"] + ["a", "a", "b", "b"] * 3


def test_slow_candidates_are_called_once_but_the_judged_one_is_repeated(long_calls):
    calls = []
    functions = {
        "judged": recorder(calls, "judged", 0.03),
        "slow": recorder(calls, "slow", 0.03),
        "fast": recorder(calls, "fast"),
    }
    result = interleave(functions, seconds=0.02, rounds=(2, 2))
    assert calls == ["judged", "slow", "fast"] + ["judged", "fast"] * 2
    assert len(result["slow"].samples) == 1
    assert len(result["judged"].samples) == 2


def test_what_is_not_implemented_has_no_timing():
    def missing():
        raise NotImplementedError("nothing of the kind")

    assert set(interleave({"a": lambda: None, "b": missing}, rounds=(1, 1))) == {"a"}


def test_cold_calls_follow_a_flush(monkeypatch):
    calls = []

    class Buffer:
        def add_(self, _):
            calls.append("flush")

    monkeypatch.setattr(timing, "_flush_buffer", Buffer)
    interleave({name: recorder(calls, name) for name in "ab"}, rounds=(2, 2), cold=True)
    assert calls == ["a", "b"] + ["flush", "a", "flush", "b"] * 2


def test_flush_buffer_is_larger_than_the_caches():
    buffer = timing._flush_buffer()
    assert buffer.numel() * buffer.element_size() >= 2 * timing.last_level_cache() >= 2**20
