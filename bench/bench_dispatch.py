"""Benchmarks of the stem ``dispatch``: the cases and baselines of its spec."""


def test_dispatch(run):
    run()
