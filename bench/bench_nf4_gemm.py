"""Benchmarks of the stem ``nf4_gemm``: the cases and baselines of its specs."""


def test_nf4_gemm(run):
    run()
