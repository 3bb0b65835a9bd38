"""Benchmarks of the stem ``routing``: the cases and baselines of its spec."""


def test_routing(run):
    run()
