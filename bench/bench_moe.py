"""Benchmarks of the stem ``moe``: the cases and baselines of its spec."""


def test_moe(run):
    run()
