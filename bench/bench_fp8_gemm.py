"""Benchmarks of the stem ``fp8_gemm``: the cases and baselines of its spec."""


def test_fp8_gemm(run):
    run()
