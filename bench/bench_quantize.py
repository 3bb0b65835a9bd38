"""Benchmarks of the stem ``quantize``; cases and baselines are those of ``hunyuan_kernels/testing/specs/quantize.py``."""


def test_quantize(run):
    run()
