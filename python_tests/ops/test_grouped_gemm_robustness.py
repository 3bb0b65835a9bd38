"""Bad input, threads, fresh memory and determinism of the ops of the stem grouped_gemm."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.testing.compare import compare_exact
from hunyuan_kernels.testing.specs.grouped_gemm import DTYPES, make_arguments, offsets_of

A, B, OFFSETS = torch.randn(5, 8), torch.randn(2, 6, 8), offsets_of([3, 2])
GRAD_OUT, GRAD_B = torch.randn(5, 6), torch.randn(2, 6, 8)


def offsets(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


# what is called, and what the message has to contain
BAD_INPUT: list[tuple[Callable[[], object], str]] = [
    (lambda: hk.grouped_gemm(A[0], B, OFFSETS), r"grouped_gemm: a has shape \[8\]; 2 dimensions are required"),
    (lambda: hk.grouped_gemm(A, B[0], OFFSETS), r"grouped_gemm: b has shape \[6, 8\]; 3 dimensions are required"),
    (lambda: hk.grouped_gemm(A[:, :7], B, OFFSETS), r"grouped_gemm: a has shape \[5, 7\]; required: .*\[any, 8\]"),
    (lambda: hk.grouped_gemm(A.double(), B.double(), OFFSETS), "b has dtype float64; allowed: bfloat16, float32"),
    (lambda: hk.grouped_gemm(A.half(), B, OFFSETS), "a has dtype float16; allowed: bfloat16, float32"),
    (lambda: hk.grouped_gemm(A.bfloat16(), B, OFFSETS), "b has dtype float32, but a has bfloat16"),
    (lambda: hk.grouped_gemm(A.to(torch.float8_e4m3fnuz), B, OFFSETS), "a has dtype float8_e4m3fnuz; allowed"),
    (lambda: hk.grouped_gemm(A, B, OFFSETS, out_dtype=torch.float16), "out_dtype is float16; allowed: bfloat16"),
    (lambda: hk.grouped_gemm(A, torch.randn(2, 6, 16)[..., ::2], OFFSETS), r"b has strides \[96, 16, 2\].*contiguous"),
    (lambda: hk.grouped_gemm(A, B, OFFSETS.long()), "expert_offsets has dtype int64; allowed: int32"),
    (lambda: hk.grouped_gemm(A, B, offsets(0, 5)), r"expert_offsets has shape \[2\]; required: .*\[3\]"),
    (lambda: hk.grouped_gemm(A, B, OFFSETS[None]), r"expert_offsets has shape \[1, 3\]; required"),
    (lambda: hk.grouped_gemm(A, B, offsets(1, 3, 5)), "expert_offsets starts with 1 at index 0"),
    (lambda: hk.grouped_gemm(A, B, offsets(-2, 3, 5)), "expert_offsets starts with -2 at index 0"),
    (lambda: hk.grouped_gemm(A, B, offsets(0, 4, 3)), "expert_offsets decreases from 4 at index 1 to 3 at index 2"),
    (lambda: hk.grouped_gemm(A, B, offsets(0, -1, 3)), "expert_offsets decreases from 0 at index 0 to -1 at index 1"),
    (lambda: hk.grouped_gemm(A, B, offsets(0, 3, 6)), "expert_offsets ends with 6 at index 2, but S = 5"),
    (lambda: hk.grouped_gemm(A, B, offsets(0, 3, 2**31 - 1)), "expert_offsets ends with 2147483647"),
    (lambda: hk.grouped_swiglu(A, B[:, :5], OFFSETS), r"gate_up has shape \[2, 5, 8\]; dimension 1 must be even"),
    (lambda: hk.grouped_swiglu(A, B.bfloat16(), OFFSETS), "gate_up has dtype bfloat16, but a has float32"),
    (lambda: hk.grouped_swiglu(A, B, offsets(0, 3, 6), return_preactivation=True), "expert_offsets ends with 6"),
    (lambda: hk.grouped_gemm_wgrad_(GRAD_B.bfloat16(), GRAD_OUT, A, OFFSETS), "grad_b has dtype bfloat16; allowed"),
    (lambda: hk.grouped_gemm_wgrad_(GRAD_B, GRAD_OUT[:4], A, OFFSETS), r"a has shape \[5, 8\]; required: .*\[4, any\]"),
    (lambda: hk.grouped_gemm_wgrad_(GRAD_B, GRAD_OUT, A[:, :7], OFFSETS), r"a has shape \[5, 7\]; required"),
    (lambda: hk.grouped_gemm_wgrad_(GRAD_B, GRAD_OUT[:, :5], A, OFFSETS), r"grad_out has shape \[5, 5\]; required"),
    (
        lambda: hk.grouped_gemm_wgrad_(GRAD_B[:1].expand(2, 6, 8), GRAD_OUT, A, OFFSETS),
        "grad_b has strides that make elements share memory",
    ),
    (
        lambda: hk.grouped_gemm_wgrad_(GRAD_B[:, :1].expand(2, 6, 8), GRAD_OUT, A, OFFSETS),
        "grad_b has strides that make elements share memory",
    ),
    (lambda: hk.grouped_gemm_wgrad_(GRAD_B, GRAD_B[0, 1:6, :6], A, OFFSETS), "grad_b shares memory with grad_out"),
    (lambda: hk.grouped_gemm_wgrad_(GRAD_B, GRAD_OUT, GRAD_B[1, :5], OFFSETS), "grad_b shares memory with a,"),
    (
        lambda: hk.grouped_gemm_wgrad_(GRAD_B, GRAD_OUT, A, GRAD_B[0, 0, :3].view(torch.int32)),
        "grad_b shares memory with expert_offsets",
    ),
    (
        lambda: hk.grouped_gemm_wgrad_(GRAD_B.clone().requires_grad_(), GRAD_OUT, A, OFFSETS),
        "grad_b requires a gradient, but what is written into grad_b has none",
    ),
    (
        lambda: hk.grouped_gemm_wgrad_(GRAD_B, GRAD_OUT, A.clone().requires_grad_(), OFFSETS),
        "a requires a gradient, but what is written into grad_b has none",
    ),
    (lambda: ops.grouped_gemm_wgrad(GRAD_OUT, A, offsets()), "expert_offsets is empty"),
    (lambda: ops.grouped_gemm_dgrad(GRAD_OUT[:, :5], B, OFFSETS), r"grad_out has shape \[5, 5\]; required"),
]


@pytest.mark.parametrize(("call", "message"), BAD_INPUT)
def test_bad_input(call: Callable[[], object], message: str):
    with pytest.raises(RuntimeError, match=message):
        call()


META_INPUT: list[tuple[Callable[[Tensor, Tensor, Tensor], object], str]] = [
    (lambda a, b, o: hk.grouped_gemm(a[:, :7], b, o), r"grouped_gemm: a has shape \[5, 7\], but b has shape"),
    (lambda a, b, o: hk.grouped_gemm(a.half(), b, o), "grouped_gemm: a has dtype torch.float16"),
    (lambda a, b, o: hk.grouped_gemm(a.bfloat16(), b, o), "grouped_gemm: b has dtype torch.float32, but a has"),
    (lambda a, b, o: hk.grouped_gemm(a, b, o[:2]), r"expert_offsets has shape \[2\]; required: \[E \+ 1\] = \[3\]"),
    (lambda a, b, o: hk.grouped_gemm(a, b, o.long()), "expert_offsets has dtype torch.int64; allowed: int32"),
    (lambda a, b, o: hk.grouped_gemm(a, b, o, out_dtype=torch.half), "out_dtype is torch.float16; allowed"),
    (lambda a, b, o: hk.grouped_swiglu(a, b[:, :5], o), r"gate_up has shape \[2, 5, 8\]; dimension 1 must be even"),
    (lambda a, b, o: hk.grouped_gemm_wgrad_(b.half(), a[:, :6], a, o), "grad_b has dtype torch.float16"),
]


@pytest.mark.parametrize(("call", "message"), META_INPUT)
def test_bad_input_under_tracing(call: Callable[[Tensor, Tensor, Tensor], object], message: str):
    """The fake functions check too, so that torch.compile says what is wrong."""
    with pytest.raises(RuntimeError, match=message):
        call(A.to("meta"), B.to("meta"), OFFSETS.to("meta"))


def every_op(seed: int = 0) -> dict[str, Callable[[], list[Tensor]]]:
    """Each op on rows that fill several blocks, with rows past the end."""
    gemm = make_arguments([400, 0, 7, 90], 75, 300, torch.bfloat16, seed, tail=5)
    swiglu = make_arguments([400, 0, 7, 90], 2 * 37, 300, torch.bfloat16, seed, tail=5, name="gate_up")
    a, b, offsets = gemm.values()
    grad = torch.randn(a.shape[0], 75, generator=torch.Generator().manual_seed(seed)).bfloat16()

    def accumulate() -> list[Tensor]:
        total = torch.ones(4, 75, 300)
        hk.grouped_gemm_wgrad_(total, grad, a, offsets)
        return [total]

    return {
        "grouped_gemm": lambda: [hk.grouped_gemm(**gemm)],
        "dgrad": lambda: [ops.grouped_gemm_dgrad(grad, b, offsets)],
        "wgrad": lambda: [ops.grouped_gemm_wgrad(grad, a, offsets)],
        "wgrad_": accumulate,
        "grouped_swiglu": lambda: [hk.grouped_swiglu(**swiglu)],
        "with pre-activation": lambda: list(hk.grouped_swiglu(**swiglu, return_preactivation=True)),
    }


@pytest.mark.parametrize("name", list(every_op()))
def test_one_and_two_threads_agree(name: str):
    call, threads = every_op()[name], torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(call())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert compare_exact(name, y, x)


@pytest.mark.parametrize("name", list(every_op()))
def test_every_element_is_written(name: str):
    """Deterministic mode fills fresh memory with NaN."""
    call = every_op()[name]
    want = call()
    torch.use_deterministic_algorithms(True)
    try:
        got = call()
    finally:
        torch.use_deterministic_algorithms(False)
    for x, y in zip(want, got, strict=True):
        assert compare_exact(name, y, x)


def test_two_python_threads_at_once():
    calls = [every_op(seed) for seed in range(2)]
    want = [{name: call() for name, call in c.items()} for c in calls]
    failures: list[str] = []

    def work(index: int) -> None:
        for _ in range(3):
            for name, call in calls[index].items():
                for x, y in zip(want[index][name], call(), strict=True):
                    if not compare_exact(name, y, x):
                        failures.append(name)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_experts(dtype: torch.dtype):
    a, b = torch.randn(4, 8).to(dtype), torch.empty(0, 6, 8, dtype=dtype)
    assert torch.equal(hk.grouped_gemm(a, b, offsets(0)), torch.zeros(4, 6, dtype=dtype))
    assert torch.equal(hk.grouped_swiglu(a, b, offsets(0)), torch.zeros(4, 3, dtype=dtype))
    assert ops.grouped_gemm_wgrad(torch.randn(4, 6).to(dtype), a, offsets(0)).shape == (0, 6, 8)


def test_arguments_are_not_changed():
    arguments = make_arguments([3, 9], 10, 12, torch.bfloat16, 0, tail=1)
    before = {name: tensor.clone() for name, tensor in arguments.items()}
    hk.grouped_gemm(**arguments)
    for name, tensor in arguments.items():
        assert compare_exact(name, tensor, before[name])
