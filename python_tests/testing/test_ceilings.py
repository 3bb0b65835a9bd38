"""The probes do the work that they state, on every instruction set; their rates are not tested."""

import pytest
import torch

from hunyuan_kernels._ops import ops
from hunyuan_kernels.testing.ceilings import Ceiling, Probe, ceiling_of, make_probes
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets
from hunyuan_kernels.testing.spec import Work
from hunyuan_kernels.testing.timing import Timing


def test_ceiling_is_the_best_probe():
    probes = {"one": Probe(lambda: None, Work(0.0, 100.0)), "two": Probe(lambda: None, Work(50.0, 0.0))}
    timings = {"one": Timing((2.0, 4.0)), "two": Timing((0.5, 1.0, 1.5))}
    ceiling = ceiling_of(probes, timings)
    assert ceiling == Ceiling(flops_per_second=100.0, bytes_per_second=50.0)
    # 1 s for the flops, 2 s for the bytes: the bytes decide
    assert ceiling.share(Work(100.0, 100.0), 4.0) == pytest.approx(0.5)
    assert Ceiling(0.0, 50.0).share(Work(0.0, 100.0), 4.0) == pytest.approx(0.5)


@pytest.mark.parametrize("isa", supported_instruction_sets())
@pytest.mark.parametrize(
    ("work", "dtype", "names"),
    [
        (Work(0.0, 1e6), torch.bfloat16, {"read", "copy past the caches", "copy"}),
        (Work(1e6, 1e3), torch.float32, {"read", "float32 multiply-adds"}),
        (Work(1e6, 1e12), torch.bfloat16, {"read", "float32 multiply-adds", "bfloat16 multiply-adds"}),
        (Work(1e6, 1e6), torch.float8_e4m3fn, {"read", "float32 multiply-adds", "bfloat16 multiply-adds"}),
    ],
)
def test_probes_of_an_op(work, dtype, names, isa):
    with instruction_set(isa):
        probes = make_probes(work, dtype)
        if isa not in ("avx512_bf16", "neon_bf16"):  # those with dot products of bf16 pairs
            names = names - {"bfloat16 multiply-adds"}
        assert set(probes) == names
        for name, probe in probes.items():
            probe.function()
            if "multiply" in name:
                assert probe.work.flops >= 2**29
                assert probe.work.bytes == 0.0
            else:
                assert probe.work.flops == 0.0
                assert 2**15 <= probe.work.bytes <= 2**28


@pytest.mark.parametrize("isa", supported_instruction_sets())
@pytest.mark.parametrize("granules", [0, 1, 3, 128, 129, 1000])
def test_copies_are_copies(granules, isa):
    source = torch.randint(0, 256, (1024 * granules,), dtype=torch.uint8)
    before, target = source.clone(), torch.zeros_like(source)
    with instruction_set(isa):
        ops.ceiling_copy(source, target)
        ops.ceiling_read(source)
    assert torch.equal(target, before)
    assert torch.equal(source, before)


@pytest.mark.parametrize("isa", supported_instruction_sets())
@pytest.mark.parametrize("flops", [0, 1, 10**8])
def test_multiply_adds_are_at_least_as_many_as_asked_for(flops, isa):
    with instruction_set(isa):
        assert flops <= ops.ceiling_multiply(torch.float32, flops) < flops + 2**24


BYTES = torch.zeros(2048, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.ceiling_multiply(torch.float16, 1), "dtype is float16; allowed: bfloat16, float32"),
        (lambda: ops.ceiling_multiply(torch.float32, -1), "flops is -1; at least 0"),
        (
            lambda: ops.ceiling_read(BYTES[:1000]),
            r"source has shape \[1000\]; required: contiguous, a multiple of 1024",
        ),
        (lambda: ops.ceiling_read(BYTES[::2]), r"source has shape \[1024\]; required: contiguous"),
        (lambda: ops.ceiling_read(BYTES.view(torch.float32)), "source has dtype float32"),
        (lambda: ops.ceiling_read(BYTES.view(2, 1024)), r"source has shape \[2, 1024\]"),
        (lambda: ops.ceiling_copy(BYTES, BYTES[:1024]), r"target has shape \[1024\]"),
        (lambda: ops.ceiling_copy(BYTES[:1024], BYTES[32:1056]), "target is not aligned to 64 bytes"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
