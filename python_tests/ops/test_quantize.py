"""quantize_fp8 against its specification, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hunyuan_kernels as hk
from hunyuan_kernels import reference
from hunyuan_kernels._ops import ops
from hunyuan_kernels.ops.quantize import RECIPES
from hunyuan_kernels.testing.compare import compare_exact
from python_tests.backends import CPU, SIMULATED, needs_device_code

ALL_BFLOAT16 = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def check(x, recipe, scale=None):
    q, s = hk.quantize_fp8(x, recipe, scale)
    want_q, want_s = reference.quantize.quantize_fp8(x, recipe, scale)
    for comparison in (compare_exact("scale", s, want_s), compare_exact("q", q, want_q)):
        assert comparison, f"{recipe} {tuple(x.shape)} {x.dtype}: {comparison.message}"
    return q, s


@pytest.mark.parametrize("backend", CPU + SIMULATED)
@pytest.mark.parametrize("scale", [1.0, 0.37, 1e-30, 3e4, 2.0**-126, 1e-40])
def test_every_bfloat16_value(backend, scale):
    with backend():
        check(ALL_BFLOAT16.reshape(256, 256), "tensor", torch.tensor(scale))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("backend", CPU + SIMULATED)
def test_every_bfloat16_value_dynamic(backend, recipe):
    """In order and shuffled: infinities, NaNs and subnormal numbers share scales with others."""
    shuffled = ALL_BFLOAT16[torch.randperm(2**16, generator=torch.Generator().manual_seed(0))]
    with backend():
        for values in (ALL_BFLOAT16, shuffled):
            check(values.reshape(512, 128), recipe)


@pytest.mark.parametrize("backend", CPU + SIMULATED)
def test_rounding_of_float32(backend):
    """Both sides of every boundary between two e4m3 values, and the boundary itself."""
    values = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()  # 0 to 448
    middle = (values[:-1] + values[1:]) / 2
    up, down = (middle.nextafter(torch.tensor(to)) for to in (1e9, -1e9))
    overflow = torch.tensor([448.0, 463.9, 464.0, 464.1, 480.0, 1e30, float("inf"), float("nan")])
    x = torch.cat([values, middle, up, down, overflow])
    with backend():
        check(torch.stack([x, -x]), "tensor", torch.tensor(1.0))


@given(
    matrices=st.sampled_from([None, 0, 1, 3]),
    rows=st.sampled_from([0, 1, 2, 5, 127, 128, 129, 260]),
    columns=st.sampled_from([0, 1, 7, 16, 127, 128, 129, 300]),
    recipe=st.sampled_from(RECIPES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_shapes(matrices, rows, columns, recipe, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, columns) if matrices is None else (matrices, rows, columns)
    x = torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator).sub(0.5).mul(60).exp()
    check(x.to(dtype), recipe)


@given(
    matrices=st.sampled_from([None, 0, 1, 3]),
    rows=st.sampled_from([0, 1, 2, 17, 129]),
    columns=st.sampled_from([0, 1, 7, 8, 128, 129, 300]),
    recipe=st.sampled_from(RECIPES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    sms=st.sampled_from([1, 8]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
@needs_device_code
def test_shapes_simulated(matrices, rows, columns, recipe, dtype, sms, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, columns) if matrices is None else (matrices, rows, columns)
    x = torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator).sub(0.5).mul(60).exp()
    with hk.simulated_gpu(seed=seed, sms=sms):
        check(x.to(dtype), recipe)


@pytest.mark.parametrize("backend", CPU[:1] + SIMULATED[:1])
@pytest.mark.parametrize("recipe", RECIPES)
def test_strides(recipe, backend):
    base = torch.randn(2, 70, 600, dtype=torch.bfloat16)
    for x in (
        base[0, ::2, 100:400],
        base[0].t(),
        base[:, ::3, 7:300],
        base.permute(0, 2, 1),
        base[1, 0].expand(9, 600),
        base[0, :, 3:131],  # rows that start at odd addresses
    ):
        with backend():
            check(x, recipe)


@pytest.mark.parametrize("backend", CPU[:1] + SIMULATED[:1])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(130, 300), (3, 130, 300)])
def test_static_scale_of_any_stride(recipe, shape, backend):
    x = torch.randn(shape)
    _, scale = hk.quantize_fp8(x * 3, recipe)
    with backend():
        q, returned = check(x, recipe, scale)
    assert returned is scale
    spread = torch.empty(tuple(2 * n for n in scale.shape)).as_strided(
        scale.shape, [2 * s for s in torch.empty([2 * n for n in scale.shape]).stride()]
    )
    spread.copy_(scale)
    with backend():
        assert torch.equal(hk.quantize_fp8(x, recipe, spread)[0].view(torch.uint8), q.view(torch.uint8))


def test_activation_scales_lie_m_major():
    _, scale = hk.quantize_fp8(torch.randn(5, 300), "block_1x128")
    assert scale.shape == (5, 3)
    assert scale.stride() == (1, 8)
    _, scale = hk.quantize_fp8(torch.randn(2, 5, 300), "block_1x128")
    assert scale.stride() == (24, 1, 8)


def test_special_values_leave_their_neighbours_alone():
    x = torch.tensor([[1.0, float("inf"), -2.0, float("nan"), float("-inf"), 0.5]])
    q, scale = hk.quantize_fp8(x, "row")
    clean, clean_scale = hk.quantize_fp8(x.nan_to_num(0.0, 0.0, 0.0), "row")
    assert torch.equal(scale, clean_scale)
    assert q[0, [0, 2, 5]].tolist() == clean[0, [0, 2, 5]].tolist()
    assert q[0, 1].item() == 448.0
    assert q[0, 4].item() == -448.0
    assert q[0, 3].isnan()


@pytest.mark.parametrize("value", [0.0, 1e-42, 448 * 2.0**-127, float("nan"), float("inf")])
def test_scale_is_one_without_a_normal_quotient(value):
    _, scale = hk.quantize_fp8(torch.full((3, 5), value), "row")
    assert scale.tolist() == [1.0] * 3
    _, scale = hk.quantize_fp8(torch.full((1, 1), 448 * 2.0**-126), "tensor")
    assert scale.item() == 2.0**-126


def test_flush_denormal_changes_nothing():
    x = ALL_BFLOAT16.reshape(256, 256)
    scale = torch.tensor(1e-40)
    want = hk.quantize_fp8(x, "tensor", scale)[0]
    if not torch.set_flush_denormal(True):
        pytest.skip(reason="this CPU has no mode that flushes subnormal numbers")
    try:
        got = hk.quantize_fp8(x, "tensor", scale)[0]
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("recipe", RECIPES)
def test_threads_and_uninitialized_memory(recipe):
    x = torch.randn(2, 300, 1000)
    want = hk.quantize_fp8(x, recipe)
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for got, expected in zip(hk.quantize_fp8(x, recipe), want, strict=True):
                assert compare_exact(f"{count} threads", got, expected)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(70, 300), (2, 70, 300), (0, 128), (3, 0)])
def test_opcheck(recipe, shape):
    x = torch.randn(shape)
    torch.library.opcheck(ops.quantize_fp8.default, (x, recipe))
    _, scale = hk.quantize_fp8(x, recipe)
    torch.library.opcheck(ops.quantize_fp8_static.default, (x, recipe, scale))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4, dtype=torch.float32), "row"), r"quantize_fp8: x has shape \[4\]; required: \[M, K\]"),
        ((torch.zeros(1, 1, 1, 1), "row"), r"quantize_fp8: x has shape \[1, 1, 1, 1\]; required"),
        ((torch.zeros(4, 4, dtype=torch.float16), "row"), "x has dtype float16; allowed: float32, bfloat16"),
        ((torch.zeros(4, 4, dtype=torch.float64), "row"), "x has dtype float64; allowed: float32, bfloat16"),
        ((torch.zeros(4, 4, dtype=torch.float8_e4m3fnuz), "row"), "x has dtype float8_e4m3fnuz; allowed"),
        ((torch.zeros(4, 4), "column"), "recipe is 'column'; allowed: 'tensor', 'row', 'block_1x128', 'block_128x128'"),
        ((torch.zeros(4, 4), "row", torch.ones(3)), r"scale has shape \[3\]; required for recipe 'row' .*: \[4\]"),
        ((torch.zeros(4, 4), "tensor", torch.ones(1)), r"scale has shape \[1\]; required .*: \[\]"),
        ((torch.zeros(4, 4), "row", torch.ones(4, dtype=torch.bfloat16)), "scale has dtype bfloat16; allowed: float32"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        hk.quantize_fp8(*arguments)


def test_backward_says_why_not():
    x = torch.randn(4, 4, requires_grad=True)
    _, scale = hk.quantize_fp8(x, "row")
    with pytest.raises(RuntimeError, match=r"quantize_fp8: x requires a gradient.* x\.detach\(\)"):
        scale.sum().backward()


def test_compiles():
    x = torch.randn(70, 300)
    compiled = torch.compile(lambda x: hk.quantize_fp8(x, "block_1x128"), fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(x), hk.quantize_fp8(x, "block_1x128"), strict=True):
        assert compare_exact("compiled", got, want)
