"""Benchmarks of the stem ``grouped_gemm``: the cases and baselines of its spec."""


def test_grouped_gemm(run):
    run()
