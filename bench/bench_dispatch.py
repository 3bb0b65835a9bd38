"""Benchmarks of the stem ``dispatch``; cases and baselines are those of ``hunyuan_kernels/testing/specs/dispatch.py``."""


def test_dispatch(run):
    run()
