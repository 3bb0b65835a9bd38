"""Benchmarks of the stem ``routing``; cases and baselines are those of ``hunyuan_kernels/testing/specs/routing.py``."""


def test_routing(run):
    run()
