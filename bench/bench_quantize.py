"""Benchmarks of the stem ``quantize``: the cases and baselines of its spec."""


def test_quantize(run):
    run()
