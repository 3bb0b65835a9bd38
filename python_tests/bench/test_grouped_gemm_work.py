"""The table of what plans make of the models' shapes."""

from pathlib import Path

import pytest
import torch

import hunyuan_kernels as hk
from bench.grouped_gemm_work import Form, loads, plans, table, work
from hunyuan_kernels._ops import ops
from hunyuan_kernels.testing.specs.grouped_gemm import make_arguments
from python_tests.backends import needs_device_code

DOC = Path(__file__).resolve().parents[2] / "docs/kernels/grouped_gemm.md"


def test_the_doc_has_the_table():
    assert table() in DOC.read_text(encoding="utf-8"), "python -m bench.grouped_gemm_work"


def test_loads():
    assert list(loads(8, 4)) == [[2, 2, 2, 2], [4, 2, 1, 1], [8, 0, 0, 0]]


@needs_device_code
@pytest.mark.parametrize("sizes", [[130, 0, 70], [9, 3, 1]], ids=["many rows", "few rows"])
def test_ratios_are_those_of_the_simulator(sizes):
    columns, depth = 264, 192
    a, b, offsets = make_arguments(sizes, columns, depth, torch.bfloat16, 0).values()
    grad = torch.randn(sum(sizes), columns).bfloat16()
    with hk.simulated_gpu(sms=4, check_races=False, split_warps=False) as gpu:
        hk.grouped_gemm(a, b, offsets)
        ops.grouped_gemm_wgrad(grad, a, offsets)
    product = {"experts": 3, "rows": sum(sizes), "columns": columns, "depth": depth, "sms": 4}
    used = sum(size > 0 for size in sizes)
    operands = (sum(sizes) * depth + used * columns * depth, sum(sizes) * (columns + depth))
    for report, form, elements in zip(gpu.reports, (Form.rows, Form.weight_gradient), operands, strict=True):
        flops, loaded = work(plans.grouped_gemm(form=form, **product), form, sizes, columns, depth)
        demanded = 2 * sum(sizes) * columns * depth
        assert sum(report.counters["mma_flops"].values()) == pytest.approx(flops * demanded)
        assert report.counters["tma_load_bytes"] == pytest.approx(2 * loaded * elements)
