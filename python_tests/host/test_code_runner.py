"""`_C.driver.CodeRunner` on the simulated GPU: kernels that are not of this build, and what is refused."""

import pytest
import torch
from hunyuan_kernels._C import driver

from bench.gpu.conformance.target import Target, parameter_sizes

PTX = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry triple(.param .u64 in, .param .u64 out, .param .align 4 .b8 factor[4]) {
  .reg .b32 %i, %v, %f; .reg .b64 %p, %o;
  mov.u32 %i, %tid.x; mul.wide.u32 %o, %i, 4;
  ld.param.u64 %p, [in]; add.s64 %p, %p, %o; ld.global.b32 %v, [%p];
  ld.param.b32 %f, [factor]; mul.lo.s32 %v, %v, %f;
  ld.param.u64 %p, [out]; add.s64 %p, %p, %o; st.global.b32 [%p], %v;
  ret;
}
.visible .entry triples(.param .u64 in) { ret; }
"""


def has_driver():
    try:
        driver.cuda_device_count()
    except RuntimeError:
        return False
    return True


def test_launch():
    target = Target.simulated()
    values = torch.arange(32, dtype=torch.int32)
    out = target.tensor(torch.zeros_like(values))
    target.launch(PTX, "triple", target.tensor(values), out, 3)
    target.finish()
    assert torch.equal(out, 3 * values)
    target.launch(PTX, "triple", out, out, 2)  # in order: the second reads what the first wrote
    target.launch(PTX, "triple", out, out, 5)
    target.finish()
    assert torch.equal(out, 30 * values)


def test_arguments_are_checked():
    target, x = Target.simulated(), torch.zeros(32, dtype=torch.int32)
    assert parameter_sizes(PTX, "triple") == [8, 8, 4]
    with pytest.raises(ValueError, match=r"triple takes arguments of \[8, 8, 4\] bytes; \[8, 8\] were given"):
        target.launch(PTX, "triple", x, x)
    with pytest.raises(ValueError, match=r"\[8, 4, 4\] were given"):
        target.launch(PTX, "triple", x, 1, 3)
    with pytest.raises(ValueError, match="no kernel 'tripl'"):
        target.launch(PTX, "tripl", x, x, 3)


def test_finding():
    target, x = Target.simulated(), torch.zeros(16, dtype=torch.int32)
    target.launch(PTX, "triple", x, x, 3)
    with pytest.raises(RuntimeError, match="kernel triple, PTX line"):
        target.finish()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 0}, "grid"),
        ({"grid": (1, 1, 1, 1)}, "grid needs 1 to 3 dimensions"),
        ({"block": 2048}, "block dimension x is 2048"),
        ({"shared": 300_000}, "300000 bytes of dynamic shared memory"),
        ({"cluster": 3, "grid": 4}, "cluster"),
    ],
)
def test_launches_are_checked(options, message):
    target, x = Target.simulated(), torch.zeros(32, dtype=torch.int32)
    with pytest.raises((RuntimeError, ValueError), match=message):
        target.launch(PTX, "triple", x, x, 3, **options)
    # The next launch is not affected.
    target.launch(PTX, "triple", x, x, 3)
    target.finish()


def test_code_is_checked():
    with pytest.raises(
        RuntimeError, match=r"kernel triple of the code with triple: PTX line 9: unsupported .* no\.such\.op"
    ):
        Target.simulated().launch(PTX.replace("mul.lo.s32", "no.such.op"), "triple", torch.zeros(1), torch.zeros(1), 3)


def test_tensor_maps_are_checked():
    target, x = Target.simulated(), torch.zeros(64, 64, dtype=torch.int16)
    assert len(target.map(x, [32, 8], "u16").data) == 128
    with pytest.raises(RuntimeError, match="box dimension"):
        target.map(x, [512, 8], "u16")
    with pytest.raises(ValueError, match="2 dimensions, 1 strides, 1 of the box"):
        target.map(x, [32], "u16")


@pytest.mark.skipif(has_driver(), reason="this machine has a CUDA driver")
def test_no_driver():
    """The reason is the same wherever a driver is asked for."""
    with pytest.raises(RuntimeError) as first:
        driver.cuda_device_count()
    with pytest.raises(RuntimeError) as second:
        driver.CodeRunner(0)
    assert str(first.value) == str(second.value)
