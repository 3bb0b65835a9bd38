"""Benchmarks of the stem ``prepack``: the cases and baselines of its specs."""


def test_prepack(run):
    run()
