"""What cannot be run is refused with its reason: never a crash, never a wrong result."""

import planted
import pytest
import torch
from hunyuan_kernels._C import simulator

HEAD = ".version 8.0\n.target sm_90a\n.address_size 64\n"
SMALL = HEAD + ".visible .entry small(.param .u64 p, .param .u32 n, .param .f32 x) {\n  ret;\n}\n"


def launch(ptx=SMALL, kernel="small", **change):
    config = {"grid": 1, "block": 32, "args": [torch.zeros(4), 5, 0.5], **change}
    return simulator.Gpu().launch(simulator.Module(ptx), kernel, **config)


def test_the_small_kernel_runs():
    assert launch().warp_instructions == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no PTX at all", r"PTX line 1: .*'no'"),
        (HEAD + ".visible .entry k( {", r"PTX line 4: unexpected end of the text"),
        (HEAD + ".visible .entry k(.param .u64 p", r"PTX line 4: unexpected end of the text"),
        (HEAD + ".visible .entry k() {\n  .reg .b32 %r<4000000000>;\n}", r"PTX line 5: .*4000000000 registers"),
        (HEAD + ".visible .entry k() {\n  add.u32 %r1, %r2\n}", r"PTX line 6: expected ';'"),
        (HEAD + ".visible .entry k() {\n  ret;", r"PTX line 5: unexpected end of the text"),
        (HEAD + '.visible .entry k() {\n  "', r"PTX line 5: "),
        (HEAD + "é", r"PTX line 4: .*near '\\xc3'"),
    ],
)
def test_unreadable_text(text, message):
    with pytest.raises(simulator.SimError, match=message):
        simulator.Module(text)


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("frobnicate.u32 %r1, %r1;", r"PTX line 6: unsupported instruction: frobnicate\.u32 %r1, %r1"),
        ("add.u32 %r1;", r"PTX line 6: unsupported instruction .*add\.u32 %r1"),
        ("add.u32 %r1, %r9, %r1;", r"PTX line 6: unsupported instruction .*add\.u32 %r1, %r9, %r1"),
        ("ld.global.u32 %r1, [nowhere];", r"unknown symbol nowhere: ld\.global\.u32 %r1, \[nowhere\]"),
        ("bra NOWHERE;", r"PTX line 6: unknown label 'NOWHERE'"),
        ("tex.1d.v4.f32.s32 {%r1, %r1, %r1, %r1}, [t, {%r1}];", r"PTX line 6: unsupported instruction"),
        ("wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 {%r1}, %r1, %r1, %r1, 0;", "PTX line 6: unsupported"),
    ],
)
def test_unsupported_instruction(instruction, message):
    module = simulator.Module(f"{HEAD}.visible .entry k() {{\n  .reg .b32 %r<2>;\n  {instruction}\n  ret;\n}}\n")
    with pytest.raises(simulator.SimError, match=message):
        simulator.Gpu().launch(module, "k", grid=1, block=32)
    assert len(module.unsupported()) == 1


def test_kernel_names():
    two = HEAD + "".join(f".visible .entry gemm_{name}() {{\n  ret;\n}}\n" for name in ("small", "large"))
    with pytest.raises(simulator.SimError, match=r"no kernel named 'gem_small'.*gemm_small, gemm_large"):
        launch(two, "gem_small", args=[])
    with pytest.raises(simulator.SimError, match=r"'gemm' is ambiguous.*gemm_small, gemm_large"):
        launch(two, "gemm", args=[])
    assert launch(two, "large", args=[]).kernel == "gemm_large"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"args": [torch.zeros(4), 5]}, "kernel small: 2 arguments given, 3 expected"),
        ({"args": [torch.zeros(4), 0.5, 0.5]}, "argument 1: a real number was given, but parameter 'n' is an integer"),
        ({"args": [torch.zeros(4), torch.zeros(4), 0.5]}, "argument 1: an array was given"),
        ({"args": [torch.zeros(4), 2**40, 0.5]}, "argument 1: the integer 1099511627776 was given"),
        ({"args": [b"123", 5, 0.5]}, "argument 0: 3 bytes were given, but parameter 'p' .* of 8 bytes"),
        ({"grid": 0}, r"grid dimension x is 0, outside \[1, 2147483647\]"),
        ({"grid": (1, 70_000)}, r"grid dimension y is 70000, outside \[1, 65535\]"),
        ({"block": 0}, r"block dimension x is 0, outside \[1, 1024\]"),
        ({"block": (32, 33)}, "1056 threads per block, at most 1024"),
        ({"block": (1, 1, 65)}, r"block dimension z is 65, outside \[1, 64\]"),
        ({"cluster": 2}, "grid dimension x is 1, not a multiple of the cluster's 2"),
        ({"grid": 32, "cluster": 32}, r"cluster dimension x is 32, outside \[1, 16\]"),
        ({"smem_bytes": 300_000}, "needs 300000 bytes of shared memory .* at most 232448"),
    ],
)
def test_launches_that_are_refused(change, message):
    with pytest.raises(simulator.SimError, match=message):
        launch(**change)


@pytest.mark.parametrize("change", [{"args": ["text", 5, 0.5]}, {"args": [torch.zeros(4, device="meta"), 5, 0.5]}])
def test_arguments_of_no_known_kind(change):
    with pytest.raises(TypeError, match="was given"):
        launch(**change)


def test_limits_of_the_kernel():
    limited = SMALL.replace(") {", ")\n.maxntid 64\n.reqnctapercluster 2, 1, 1 {")
    with pytest.raises(simulator.SimError, match=r"96 threads per block, but the kernel allows 64 \(.maxntid\)"):
        launch(limited, grid=2, cluster=2, block=96)
    with pytest.raises(simulator.SimError, match=r"cluster dimension x is 1, but the kernel requires 2"):
        launch(limited)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"dtype": "f8"}, "unknown dtype 'f8'"),
        ({"box": [512, 1]}, r"box dimension 0 is 512, outside \[1, 256\]"),
        ({"box": [4, 1]}, "inner box dimension is 8 bytes, not a multiple of 16"),
        ({"box": [64, 1]}, "inner box dimension is 128 bytes, more than the swizzle span of 64"),
        ({"dims": [0, 64]}, r"dimension 0 has size 0, outside \[1, 2\^32\]"),
        ({"dims": [64, 65]}, "describes more memory than the tensor holds"),
        ({"strides": [136]}, r"stride of dimension 1 \(136 bytes\) is not a multiple of 16"),
        ({"strides": [2**40]}, r"stride of dimension 1 .* is not below 2\^40"),
        ({"element_strides": [1, 9]}, r"element stride 1 is 9, outside \[1, 8\]"),
        ({"swizzle": 16}, "swizzle is 16, not 0, 32, 64 or 128"),
        ({"oob_fill": "one"}, "oob_fill is not 'zero' or 'nan'"),
        ({"dtype": "u16", "oob_fill": "nan"}, "NaN fill needs a floating-point type"),
        ({"offset": 8}, "not 16-byte aligned"),
        ({"dims": [64], "strides": [], "box": [32, 1]}, "box needs one entry per dimension"),
    ],
)
def test_tensor_maps_that_a_driver_refuses(change, rule):
    tensor = torch.zeros(64, 64, dtype=torch.bfloat16)
    good = {"dtype": "bf16", "tensor": tensor, "dims": [64, 64], "strides": [128], "box": [32, 4], "swizzle": 64}
    simulator.TensorMap(**good)
    with pytest.raises(ValueError, match=rule):
        simulator.TensorMap(**{**good, **change})


def test_unknown_settings():
    with pytest.raises(TypeError, match="no option 'latency'"):
        simulator.Gpu(latency=3)
    with pytest.raises(ValueError, match="schedule is 'fair', not random, hold_warps, hold_block or hold_copies"):
        simulator.Gpu(schedule="fair")


def test_a_run_can_be_given_up():
    forever = HEAD + ".visible .entry k() {\nAGAIN:\n  bra AGAIN;\n}\n"
    with pytest.raises(simulator.SimError, match="livelock: warps spin without any visible effect in kernel k"):
        simulator.Gpu(livelock_instructions=1000).launch(simulator.Module(forever), "k", grid=1, block=32)
    with pytest.raises(simulator.SimError, match="instruction limit reached in kernel k"):
        simulator.Gpu(max_instructions=1000).launch(simulator.Module(forever), "k", grid=1, block=32)


def test_an_error_leaves_the_device_usable():
    gpu = simulator.Gpu(check_races=True)
    faulty = simulator.Module(planted.source("barriers", "shared_race"))
    with pytest.raises(simulator.SimError):
        gpu.launch(faulty, "barriers", grid=1, block=96, args=[torch.zeros(96, dtype=torch.int32)])
    out = torch.zeros(96, dtype=torch.int32)
    gpu.launch(simulator.Module(planted.source("barriers")), "barriers", grid=1, block=96, args=[out])
    assert torch.equal(out, torch.arange(96, dtype=torch.int32).roll(-32))
