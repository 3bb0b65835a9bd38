"""Benchmarks of the stem ``grouped_gemm``; cases and baselines are those of ``hunyuan_kernels/testing/specs/grouped_gemm.py``."""


def test_grouped_gemm(run):
    run()
