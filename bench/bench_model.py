"""Benchmarks of the stem ``model``: the cases and baselines of its spec."""


def test_model(run):
    run()
