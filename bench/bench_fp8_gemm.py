"""Benchmarks of the stem ``fp8_gemm``; cases and baselines are those of ``hunyuan_kernels/testing/specs/fp8_gemm.py``."""


def test_fp8_gemm(run):
    run()
