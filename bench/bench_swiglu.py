"""Benchmarks of the stem ``swiglu``: the cases and baselines of its spec."""


def test_swiglu(run):
    run()
