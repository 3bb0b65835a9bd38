"""What a caller leaves out, mixes up or goes on using: named, or noticed."""

import pytest
import torch

import hunyuan_kernels as hk


def generator(seed):
    return torch.Generator().manual_seed(seed)


ROWS = torch.randn(8, 64, generator=generator(0))
LOGITS = torch.randn(8, 4, generator=generator(1))
ROUTING = hk.route(LOGITS, 1)
WEIGHTS = torch.randn(4, 64, 64, generator=generator(2))
Q, SCALE = hk.quantize_fp8(WEIGHTS[0], "row")
NF4 = hk.quantize_nf4(WEIGHTS[0])
EXPERTS = hk.Experts(WEIGHTS, torch.randn(4, 64, 32, generator=generator(3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hk.dispatch(None, ROUTING), "^dispatch: x is None; a tensor is required"),
        (lambda: hk.dispatch(ROWS, ROUTING._replace(token_ids=None)), "^dispatch: token_ids is None"),
        (lambda: hk.combine(ROWS, ROUTING._replace(rows=None)), "^combine: rows is None"),
        (lambda: hk.load_balancing_loss(LOGITS, ROUTING._replace(demand=None)), "^load_balancing_loss: demand is None"),
        (lambda: hk.fp8_linear(ROWS, Q, None), "^fp8_linear: weight_scale is None"),
        (lambda: hk.grouped_gemm(ROWS, WEIGHTS, None), "^grouped_gemm: expert_offsets is None"),
        (lambda: hk.moe(ROWS, LOGITS.new_ones(4, 64), None), "^moe: experts is NoneType; required: "),
        (lambda: hk.moe(ROWS, LOGITS.new_ones(4, 64), (*EXPERTS, None)), "^moe: experts is tuple; required: "),
        (lambda: hk.moe(ROWS, LOGITS.new_ones(4, 64), EXPERTS, WEIGHTS[0]), "^moe: shared is Tensor; required: "),
        (lambda: hk.fp8_linear(ROWS, Q, SCALE, ROWS[0, :3]), r"^fp8_linear: bias is .* \[3\]; required: .* \[64\]"),
        (lambda: hk.fp8_linear(ROWS, Q, SCALE, ROWS[:2, None]), r"^fp8_linear: bias is .* \[2, 1, 64\]; required"),
        (lambda: hk.nf4_linear(ROWS, NF4, ROWS[0, :1]), r"^nf4_linear: bias is .* \[1\]; required: .* \[64\]"),
        (lambda: hk.nf4_linear(ROWS, NF4, ROWS[0].bfloat16()), "^nf4_linear: bias is torch.bfloat16 .* torch.float32"),
        (lambda: hk.dispatch(ROWS.to("meta"), ROUTING, out=torch.empty(8, 64)), "dispatch: out is .* on cpu; required"),
    ],
)
def test_named(call, message):
    with pytest.raises((RuntimeError, TypeError), match=message):
        call()


def test_bias_under_autocast():
    with torch.autocast("cpu"):
        for out in (hk.fp8_linear(ROWS, Q, SCALE, ROWS[0]), hk.nf4_linear(ROWS, NF4, ROWS[0])):
            assert out.dtype == torch.bfloat16


def test_tensors_without_data():
    routing = hk.Routing(*(part.to("meta") for part in ROUTING))
    rows = hk.combine(ROWS.to("meta"), routing)
    assert (rows.device.type, rows.shape) == ("meta", ROWS.shape)
    out = hk.moe(ROWS.to("meta"), torch.ones(4, 64, device="meta"), hk.Experts(*(w.to("meta") for w in EXPERTS)))
    assert (out.device.type, out.shape) == ("meta", ROWS.shape)


@pytest.mark.parametrize(
    ("rows", "write"),
    [
        (8, lambda saved: hk.dispatch(ROWS, ROUTING, out=saved)),
        (64, lambda saved: hk.grouped_gemm_wgrad_(saved[None], ROWS, ROWS, torch.tensor([0, 8], dtype=torch.int32))),
    ],
)
def test_autograd_notices_what_is_written(rows, write):
    """Backward through a buffer that was written over since would give the gradient of other values."""
    saved = torch.randn(rows, 64, generator=generator(4))
    product = torch.ones_like(saved).requires_grad_() * saved
    write(saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.inference_mode():
        write(torch.zeros_like(saved))
