"""Benchmarks of the stem ``moe``; cases and baselines are those of ``hunyuan_kernels/testing/specs/moe.py``."""


def test_moe(run):
    run()
