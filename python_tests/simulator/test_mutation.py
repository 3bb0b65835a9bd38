"""Mutation of kernels: which missing instructions the simulator or the results catch."""

import planted
import pytest
import torch
from families import FAMILIES
from hunyuan_kernels._C import simulator
from nvcc import compile_ptx

from hunyuan_kernels.testing import mutation

SETTINGS = [
    {"seed": seed, "async_latency": latency, "schedule": schedule, "check_races": True, "split_warps": True}
    for seed in range(4)
    for latency, schedule in ((64, "random"), (20_000, "hold_copies"), (1, "hold_warps"), (64, "hold_block"))
]


# Mutants that nothing catches because they are right.
HARMLESS = {
    # Every thread zeroes its own word: the barrier behind it is there for the faults.
    "barriers": ["bar.sync 0;"],
    # Nothing else is kept where the mbarrier was.
    "mbarrier": ["@%p1 mbarrier.inval.shared::cta.b64 [%r2];"],
    # The second kernel begins later.
    "dependent_launch": ["griddepcontrol.launch_dependents;"],
    # The flags hand over nothing but themselves.
    "schedules": [
        "ld.acquire.gpu.global.u32 %r6, [%rd2];",
        "ld.acquire.gpu.global.u32 %r7, [%rd2+4];",
        "st.release.gpu.global.u32 [%rd2], 11;",
        "st.release.gpu.global.u32 [%rd2+4], 12;",
    ],
}
# memory.ptx synchronizes nothing.
SYNCHRONIZED = [family for family in FAMILIES if family != "memory"]


def launch_of(family):
    def launch(module, setting):
        result, reports = family.run(simulator.Gpu(**setting), module)
        assert torch.equal(result, family.want())
        return reports

    return launch


def test_mutations_of_a_text():
    ptx = """
        bar.sync 0; // bar.sync 1;
        @%p1 mbarrier.arrive.shared::cta.b64 _, [%r1];
        mbarrier.arrive.shared::cta.b64 %rd9, [%r1];
        mbarrier.try_wait.parity.shared::cta.b64 %p3,
            [%r1], 0;
        @!%p3 bra BAR;
        barrier.cta.red.popc.aligned.u32 %r5, 0, %p1;
        st.release.gpu.global.u32 [%rd1], %r2; ld.acquire.gpu.global.u32 %r3, [%rd1];
        ld.shared.u32 %r4, [%r3];"""
    changed = [(m.line, m.instruction.split()[0], m.replacement) for m in mutation.mutations(ptx)]
    assert changed == [
        (2, "bar.sync", ""),
        (3, "@%p1", ""),
        (4, "mbarrier.arrive.shared::cta.b64", "mov.b64 %rd9, 0;"),
        (5, "mbarrier.try_wait.parity.shared::cta.b64", "setp.eq.u32 %p3, 0, 0;"),
        (8, "barrier.cta.red.popc.aligned.u32", "mov.u32 %r5, 0;"),
        (9, "st.release.gpu.global.u32", "relaxed"),
        (9, "ld.acquire.gpu.global.u32", "relaxed"),
    ]
    assert all(m.ptx.count("\n") == ptx.count("\n") for m in mutation.mutations(ptx))
    assert [m.line for m in mutation.mutations(ptx, executed_lines=[5, 9])] == [5, 9, 9]


@pytest.mark.parametrize("family", SYNCHRONIZED)
def test_mutants_are_caught(family):
    mutants = mutation.run_mutants(planted.source(family), [launch_of(FAMILIES[family])], SETTINGS)
    assert mutants
    assert [m.instruction for m in mutants if not m.caught] == HARMLESS.get(family, [])


def test_a_kernel_that_fails_already_is_refused():
    with pytest.raises(simulator.SimError, match="in flight"):
        mutation.run_mutants(planted.source("copies", "read_before_copy"), [launch_of(FAMILIES["copies"])], SETTINGS)


def test_ring():
    """A producer warp and four consumer warps over a ring of stages (kernels/tensor.cu)."""
    tiles = 10
    values = torch.randint(0, 8, (32 * tiles, 32)).float()

    def launch(module, setting):
        tensor_map = simulator.TensorMap("f32", values, [32, 32 * tiles], [128], [32, 32])
        out = torch.zeros(1)
        gpu = simulator.Gpu(**setting)
        report = gpu.launch(module, "ring_ok", grid=1, block=160, args=[tensor_map, out, tiles])
        assert out.item() == values.sum().item()
        return [report]

    mutants = mutation.run_mutants(compile_ptx("tensor.cu"), [launch], SETTINGS)
    survivors = [f"line {m.line}: {m.instruction}" for m in mutants if not m.caught]
    assert len(mutants) > 8
    assert survivors == []
