"""swiglu and its gradient beyond the cases of its spec."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.reference import swiglu as reference
from hunyuan_kernels.testing.compare import compare_bounded, compare_exact
from hunyuan_kernels.testing.simulated import demanded_bytes, moved_bytes
from hunyuan_kernels.testing.spec import Work
from hunyuan_kernels.testing.specs.swiglu import compare_swiglu_backward, magnitude, make_preactivation
from python_tests.backends import CPU, SIMULATED, needs_device_code

DTYPES = [torch.bfloat16, torch.float32]
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["bfloat16", "float32"])
every_backend = pytest.mark.parametrize("backend", CPU + SIMULATED)


def offsets_of(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@every_backend
@both_dtypes
@pytest.mark.parametrize(
    ("rows", "columns", "used"), [(0, 8, None), (37, 29, None), (20, 256, 13), (5, 2056, 0), (3, 4640, 3)]
)
def test_gradient(rows, columns, used, dtype, backend):
    """As autograd calls it; rows that no expert owns are zeros, whatever the operands hold."""
    x = make_preactivation(rows, columns, dtype, 0, apart=columns == 29)
    grad_out = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    offsets, last = None, rows
    if used is not None:
        offsets, last = offsets_of(0, used, used), used
        x[used:], grad_out[used:] = float("nan"), float("nan")
    leaf = x.detach().requires_grad_()
    with backend():
        hk.swiglu(leaf, offsets).backward(grad_out)
    arguments = {"grad_out": grad_out, "preactivation": x, "expert_offsets": offsets}
    (comparison,) = compare_swiglu_backward(arguments, leaf.grad, reference.swiglu_backward(**arguments))
    assert comparison, comparison.message
    assert not leaf.grad[last:].any()
    assert leaf.grad.dtype == dtype


def test_the_reference_of_the_gradient_is_its_derivative():
    x, grad_out = make_preactivation(9, 20, torch.float32, 0), torch.randn(9, 20)
    exact = x.double().requires_grad_()
    gate, up = exact.chunk(2, dim=1)
    (F.silu(gate) * up).backward(grad_out.double())
    torch.testing.assert_close(reference.swiglu_backward(grad_out, x), exact.grad, rtol=1e-10, atol=1e-12)


@every_backend
@both_dtypes
def test_every_magnitude(dtype, backend):
    """Gates of every bf16 value, infinities and NaN among them: as in fp64 wherever the result is finite there."""
    gate = torch.arange(2**16).sub(2**15).to(torch.int16).view(torch.bfloat16).view(256, 256)
    up = torch.tensor([1.0, -2.0, 0.5, 3.0]).bfloat16().repeat(64).expand(256, 256)
    x = torch.cat([gate, up], dim=1).to(dtype)
    with backend():
        got = hk.swiglu(x)
    want = reference.swiglu(x)
    assert bool(got[gate.isnan()].isnan().all())
    assert bool(got[gate == float("-inf")].isnan().all()), "-inf * 0, as in PyTorch"
    # CPU and device may drop subnormal results, and one product may pass the largest fp32 that fp64 holds
    tiny, huge = torch.finfo(torch.float32).tiny, torch.finfo(dtype).max
    ordinary = want.isfinite() & (want.abs() < huge)
    comparison = compare_bounded("out", got[ordinary], want[ordinary], magnitude(x, want)[ordinary] + 2.0**21 * tiny)
    assert comparison, comparison.message


@both_dtypes
def test_second_derivative_ignores_rows_of_no_expert(dtype):
    x = make_preactivation(9, 6, dtype, 0).requires_grad_()
    with torch.no_grad():
        x[5:] = float("nan")
    (grad,) = torch.autograd.grad(hk.swiglu(x, offsets_of(0, 5)).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.float().pow(2).sum(), x)
    assert second[:5].any()
    assert second.isfinite().all()
    assert not second[5:].any()


@needs_device_code
@pytest.mark.parametrize("used", [-(2**31), -1, 0, 4, 6, 7, 2**31 - 1])
@pytest.mark.parametrize("columns", [16, 33])
def test_hostile_offsets_on_a_gpu(columns, used):
    """Wrong values on a device never raise and never reach out of bounds."""
    x, grad_out = torch.randn(6, 2 * columns), torch.randn(6, columns)
    with hk.simulated_gpu():
        out = ops.swiglu(x, offsets_of(3, used))
        grad = ops.swiglu_backward(grad_out, x, offsets_of(3, used))
        all_out, all_grad = ops.swiglu(x, None), ops.swiglu_backward(grad_out, x, None)
    there = (torch.arange(6) < used)[:, None]
    assert torch.equal(out, torch.where(there, all_out, 0.0))
    assert torch.equal(grad, torch.where(there, all_grad, 0.0))


@needs_device_code
@pytest.mark.parametrize("used", [64, 40])
def test_each_byte_is_moved_once(used):
    """And 4 bytes of offsets by each warp."""
    x, grad_out, offsets = torch.randn(64, 2 * 3072).bfloat16(), torch.randn(64, 3072).bfloat16(), offsets_of(0, used)
    with hk.simulated_gpu(split_warps=False) as gpu:  # as a GPU runs: lanes together
        out, grad = ops.swiglu(x, offsets), ops.swiglu_backward(grad_out, x, offsets)
    row = 3072 * 2
    for report, output, operands in ((gpu.reports[0], out, 2), (gpu.reports[1], grad, 3)):
        work = Work(flops=0.0, bytes=float(used * operands * row + output.numel() * 2))
        traffic = moved_bytes([report]).over(demanded_bytes(work, [output]))
        assert traffic.read == pytest.approx(1.0, rel=5e-3)
        assert traffic.written == 1.0
        counters = report.counters
        assert counters["global_store_sectors"] * 32 == counters["global_store_bytes"]


def test_threads_and_uninitialized_memory():
    x, grad_out, offsets = make_preactivation(900, 150, torch.bfloat16, 0), torch.randn(900, 150).bfloat16(), None
    threads, want = torch.get_num_threads(), (ops.swiglu(x, offsets), ops.swiglu_backward(grad_out, x, offsets))
    torch.use_deterministic_algorithms(True)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            got = (ops.swiglu(x, offsets), ops.swiglu_backward(grad_out, x, offsets))
            assert all(compare_exact("bits", g, w) for g, w in zip(got, want, strict=True))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


@both_dtypes
@pytest.mark.parametrize("offsets", [None, offsets_of(0, 3, 5)], ids=["all rows", "offsets"])
def test_opcheck(offsets, dtype):
    x = make_preactivation(7, 5, dtype, 0)
    grad_out = torch.randn(7, 5).to(dtype)
    for op, arguments in (
        (ops.swiglu, (x.clone().requires_grad_(), offsets)),
        (ops.swiglu_backward, (grad_out.requires_grad_(), x.clone().requires_grad_(), offsets)),
    ):
        results = torch.library.opcheck(op.default, arguments)
        assert set(results.values()) == {"SUCCESS"}, results


@both_dtypes
def test_autocast_leaves_the_dtype(dtype):
    x = make_preactivation(7, 5, dtype, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = hk.swiglu(x)
    assert compare_exact("out", got, hk.swiglu(x))


def test_it_is_what_grouped_swiglu_computes():
    """From the rounded pre-activation: within two roundings of the fused one."""
    a, gate_up, offsets = torch.randn(40, 64), torch.randn(2, 2 * 24, 64), offsets_of(0, 11, 33)
    fused, preactivation = hk.grouped_swiglu(a, gate_up, offsets, return_preactivation=True)
    torch.testing.assert_close(hk.swiglu(preactivation, offsets), fused, rtol=1e-5, atol=1e-6)


X = torch.randn(5, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hk.swiglu(X.half()), "swiglu: x has dtype float16; allowed: bfloat16, float32"),
        (lambda: hk.swiglu(X[0]), r"swiglu: x has shape \[8\]; 2 dimensions are required: \[S, 2I\]"),
        (lambda: hk.swiglu(X[:, :7]), r"swiglu: x has shape \[5, 7\]; dimension 1 must be even: I columns of gate"),
        (lambda: hk.swiglu(X, offsets_of(0, 5).long()), "expert_offsets has dtype int64; allowed: int32"),
        (lambda: hk.swiglu(X, offsets_of()), r"expert_offsets is empty; required: \[E \+ 1\]"),
        (lambda: hk.swiglu(X, offsets_of(0, 6)), "expert_offsets ends with 6 at index 1, but S = 5"),
        (lambda: hk.swiglu(X, offsets_of(0, 4, 3)), "expert_offsets decreases from 4 at index 1 to 3 at index 2"),
        (lambda: hk.swiglu(X, offsets_of(1, 4)), "expert_offsets starts with 1"),
        (lambda: ops.swiglu_backward(X, X, None), r"grad_out has shape \[5, 8\]; required: \[S, I\] = \[5, 4\]"),
        (
            lambda: ops.swiglu_backward(X[:, :4].bfloat16(), X, None),
            "swiglu_backward: grad_out has dtype bfloat16, but preactivation has float32; both must be the same",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
