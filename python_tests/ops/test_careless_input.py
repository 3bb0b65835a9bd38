"""What a caller leaves out, mixes up or goes on using: named, or noticed."""

import re

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import hunyuan_kernels as hk
from hunyuan_kernels.testing.spec import all_specs


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
        (
            lambda: hk.dispatch(ROWS.to("meta"), ROUTING, out=torch.empty(8, 64)),
            "^dispatch: x is on meta, but out is on cpu",
        ),
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


SPECS = {spec.name: spec for spec in all_specs() if spec.stem != "model" and spec.name != "expert_gradients"}
ONE_TENSOR = {"prepack", "quantize_fp8", "quantize_nf4", "route", "swiglu"}  # as their first cases call them


@pytest.mark.parametrize("name", SPECS)
def test_a_tensor_without_data_among_others(name):
    """The result would be one without data, too, or (torch's own products) memory that nothing was written to."""
    leaves, structure = tree_flatten(SPECS[name].cases()[0].make(0))
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    message = r"\w+: \w+ is on (cpu|meta), but \w+ is on (cpu|meta); they must be on the same device"
    refused = not_read = 0
    for odd in tensors:
        for there, elsewhere in (("cpu", "meta"), ("meta", "cpu")):
            moved = [
                leaves[i].to(elsewhere if i == odd else there) if i in tensors else x for i, x in enumerate(leaves)
            ]
            try:
                result = SPECS[name].function(**tree_unflatten(moved, structure))
            except RuntimeError as error:
                refused += re.match(message, str(error)) is not None
            else:  # what the op does not read
                assert len(tensors) == 1 or {out.device.type for out in tree_leaves(result)} == {there}
                not_read += 1
    assert refused + not_read == len(tensors) * 2
    assert refused >= 4 or name in ONE_TENSOR


def test_devices_under_torch_compile():
    """Among fake tensors there is a GPU on every machine."""
    with FakeTensorMode():
        a, offsets = torch.empty(8, 64, device="cuda"), torch.empty(5, dtype=torch.int32)
        with pytest.raises(RuntimeError, match=r"^swiglu: expert_offsets is on cpu, but x is on cuda:0; they must"):
            hk.swiglu(a, offsets)


def test_bias_elsewhere():
    with pytest.raises(RuntimeError, match=r"^fp8_linear: bias is on meta, but x is on cpu"):
        hk.fp8_linear(ROWS, Q, SCALE, ROWS[0].to("meta"))
    with pytest.raises(RuntimeError, match=r"^moe: gate is on meta, but x is on cpu"):
        hk.moe(ROWS, LOGITS.new_ones(4, 64, device="meta"), EXPERTS)


class Products(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return hk.grouped_gemm(ROWS, WEIGHTS, ROUTING.expert_offsets)


def test_in_the_workers_of_a_data_loader():
    """Forked after ops ran on several threads here: torch gives each worker one thread, and the ops go by that."""
    want = Products()[0]
    loader = torch.utils.data.DataLoader(Products(), num_workers=2, timeout=60, multiprocessing_context="fork")
    assert all(torch.equal(got[0], want) for got in loader)
