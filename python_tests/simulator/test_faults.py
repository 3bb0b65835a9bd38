"""Each kind of fault is planted in a kernel; the simulator must name it, and pass the correct kernel."""

import itertools
import re
import shutil
import subprocess

import planted
import pytest
import torch
from families import FAMILIES
from hunyuan_kernels._C import simulator

# What is found, and where; None where any warp or lane may be the first to run into it.
FINDINGS = {
    "memory": {
        "misaligned_vector": ("misaligned global access: address 0x", (0, 0, 0)),
        "read_only": ("store to read-only memory 'argument 0'", (0, 0, 0)),
        "shared_out_of_bounds": ("out-of-bounds shared store: address 0x", (0, 0, 31)),
        "local_out_of_bounds": ("out-of-bounds local access: offset 0x10", (0, 0, 3)),
        "global_out_of_bounds": ("out-of-bounds global store .* 0 bytes past the end of 'argument 1'", (0, 0, 31)),
        "uninitialized_shared": (
            r"uninitialized shared memory, read from 0x\w+ at PTX line \d+ by lane 31, is used as the data of a store",
            (0, 0, 31),
        ),
        "uninitialized_condition": ("uninitialized shared memory, .* is used in a condition", (0, 0, 0)),
    },
    "wgmma": {
        "missing_proxy_fence": (
            "the async proxy reads shared address 0x.* without a following fence.proxy.async",
            None,
        ),
        "missing_fence": ("wgmma.mma_async without a preceding wgmma.fence", None),
        "missing_fence_while_pending": ("an accumulator register .* a wgmma.fence is missing", None),
        "accumulator_written_after_fence": ("an accumulator register .* is accessed at PTX line", None),
        "a_written_after_fence": ("an A register .* is accessed at PTX line", None),
        "accumulator_touched": ("accumulator register of an unfinished wgmma is accessed before wgmma.wait", None),
        "second_touched": ("accumulator register of an unfinished wgmma is accessed before wgmma.wait", None),
        "a_touched": ("A register of an unfinished wgmma is accessed before wgmma.wait_group", None),
        "tile_overwritten": ("shared address 0x.* is overwritten while an unfinished", None),
        "released_early": (
            r"(shared address 0x.* is overwritten while an unfinished|data race on shared address 0x.*: this write is "
            r"not ordered after the read at PTX line \d+ by wgmma of block \(0,0,0\) warps 0 to 3, not waited for)",
            None,
        ),
    },
    "copies": {
        "bytes_never_come": ("deadlock: no warp .*\n.*pending tx bytes 128, waiting for parity 0", (0, 0, None)),
        "over_arrived": ("arrive of 1 exceeds the pending count 0", (0, 0, 0)),
        "initialized_again": ("re-initialized in the middle of phase 0", (0, 0, 0)),
        "read_before_copy": ("is read while an asynchronous copy into it is in flight", (0, 0, 0)),
        "invalidated_in_flight": (
            "(invalidated in the middle of phase 0|invalidated, which is not ordered after phase 0)",
            (0, 0, 0),
        ),
        "exit_before_copy": ("exits while an asynchronous copy into its shared memory is in flight", (0, 0, 0)),
        "exit_before_read": ("exits before cp.async.bulk.wait_group for a bulk store", (0, 0, 0)),
        "missing_proxy_fence": ("the async proxy reads shared address 0x", (0, 0, 0)),
        "overwritten_before_read": ("is overwritten while an unfinished asynchronous operation", (0, 0, 0)),
    },
    "last_block": dict.fromkeys(
        (
            "missing_fence",
            "fence_after_count",
            "block_scope",
            "acquire_release_only",
            "missing_barrier",
            "missing_fence_of_readers",
        ),
        ("data race on global address 0x.*'argument 0': this read is not ordered after the write", None),
    ),
    "multicast": {
        "peer_exits": (
            "block rank 1 (exits while an asynchronous copy into its shared memory is in flight|exits without a wait "
            "for phase 0 of mbarrier)|access to shared memory of block rank 1, which has already exited",
            (0, 0, 0),
        ),
        "peer_not_ready": (
            "(no initialized mbarrier at shared address|its initialization at PTX line .* is not ordered before)",
            (0, 0, 0),
        ),
    },
    "mbarrier": {
        "used_before_init": (
            r"(no initialized mbarrier at shared address|its initialization at PTX line \d+ by block \(0,0,0\) warp 0 "
            r"is not ordered before this use)",
            (0, 1, 0),
        ),
        "invalidated_early": (
            r"(no initialized mbarrier at shared address|invalidated, which is not ordered after the wait at PTX line)",
            None,
        ),
    },
    "cluster": {"peer_exits": ("access to shared memory of block rank [01], (whose exit|which has already)", None)},
    "barriers": {
        "deadlock": (
            r"deadlock: no warp can make progress .*\n.*\[barrier 1: 64 of 96 threads arrived\]",
            (0, 0, None),
        ),
        "count_mismatch": ("barrier 1: thread count (64|96) differs from the count (64|96)", None),
        "shared_race": (r"data race on shared address 0x.*: this (read|write) is not ordered after the .*warp", None),
    },
    "global_race": {
        "missing_release": ("data race on global address 0x.*'argument 0': this read is not ordered after", (1, 0, 0)),
        "missing_acquire": ("data race on global address 0x.*'argument 0': this read is not ordered after", (1, 0, 0)),
        "block_scope": ("data race on global address 0x.*'argument 0': this read is not ordered after", (1, 0, 0)),
        "weak_flag": ("data race on global address 0x.*'argument 1': this (read|write) is not ordered after", None),
    },
    "dependent_launch": {
        "early_read": ("read of global address 0x.* before griddepcontrol.wait.*, which writes it", (0, 0, 0)),
        "early_write": (
            "write of global address 0x.* before griddepcontrol.wait.*, which (reads|writes) it",
            (0, 0, 0),
        ),
    },
}
SEEDS = 16  # of the schedules' tests
CASES = [(family, fault) for family, findings in FINDINGS.items() for fault in findings]


def device(seed=0, **options):
    return simulator.Gpu(seed=seed, num_sms=4, check_races=True, **options)


def test_every_planted_fault_is_tested():
    for family in FAMILIES:
        tested = FINDINGS.get(family) or dict.fromkeys(("trusts_block", "trusts_warp", "trusts_copy"))
        assert set(planted.faults(family)) == set(tested)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split_warps", [False, True])
def test_correct_kernel_passes(family, split_warps):
    module = simulator.Module(planted.source(family))
    for seed, latency, schedule in itertools.product(
        range(2), (1, 64, 20_000), ("random", "hold_warps", "hold_block", "hold_copies")
    ):
        gpu = device(seed, async_latency=latency, schedule=schedule, split_warps=split_warps)
        result, reports = FAMILIES[family].run(gpu, module)
        assert torch.equal(result, FAMILIES[family].want())
        assert reports[-1].kernel == FAMILIES[family].kernel


def test_lanes_of_a_warp_pass_cluster_barriers_apart():
    module = simulator.Module(planted.source("cluster").replace(".aligned;", ";"))
    for seed in range(SEEDS):
        result, _ = FAMILIES["cluster"].run(device(seed, split_warps=True), module)
        assert torch.equal(result, FAMILIES["cluster"].want())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("family", "fault"), CASES)
def test_fault_is_named(family, fault, seed):
    message, where = FINDINGS[family][fault]
    module = simulator.Module(planted.source(family, fault))
    with pytest.raises(simulator.SimError, match=message) as error:
        FAMILIES[family].run(device(seed, schedule="hold_copies"), module)
    text = str(error.value)
    assert f"kernel {FAMILIES[family].kernel}" in text
    lines = "|".join(map(str, planted.named_lines(family, fault)))
    assert re.search(rf"PTX line ({lines})(:|, block \(\d,0,0\), warp \d)", text)
    if where and where[2] is not None:
        block, warp, lane = where
        assert f"block ({block},0,0), warp {warp}, lane {lane}: " in text


@pytest.mark.parametrize(
    ("family", "fault", "message"),
    [
        ("mbarrier", "used_before_init", "initializ"),
        ("mbarrier", "invalidated_early", "invalidated"),
        ("copies", "invalidated_in_flight", "invalidated"),
        ("copies", "exit_before_copy", "block rank 0 exits w"),
        ("multicast", "peer_exits", "exit"),
        ("multicast", "peer_not_ready", "initializ"),
        *(("last_block", fault, "data race") for fault in FINDINGS["last_block"]),
    ],
)
def test_found_whatever_the_schedule(family, fault, message):
    module = simulator.Module(planted.source(family, fault))
    for seed, latency, schedule in itertools.product(
        range(SEEDS), (1, 64, 20_000), ("random", "hold_warps", "hold_block", "hold_copies")
    ):
        with pytest.raises(simulator.SimError, match=message):
            FAMILIES[family].run(device(seed, schedule=schedule, async_latency=latency), module)


CHAIN = """.version 8.0
.target sm_90a
.address_size 64
.visible .entry first(.param .u64 data) {
  .reg .b64 %rd<2>;
  griddepcontrol.launch_dependents;
  ld.param.u64 %rd1, [data];
  st.global.u32 [%rd1], 7;
  ret;
}
.visible .entry between(.param .u64 other) {
  .reg .b64 %rd<2>;
  griddepcontrol.launch_dependents;
  WAIT
  ld.param.u64 %rd1, [other];
  st.global.u32 [%rd1], 8;
  ret;
}
.visible .entry last(.param .u64 data, .param .u64 out) {
  .reg .b32 %r<2>;
  .reg .b64 %rd<3>;
  griddepcontrol.wait;
  ld.param.u64 %rd1, [data];
  ld.param.u64 %rd2, [out];
  ld.global.u32 %r1, [%rd1];
  st.global.u32 [%rd2], %r1;
  ret;
}
"""


@pytest.mark.parametrize("wait", ["griddepcontrol.wait;", ""])
def test_a_wait_reaches_as_far_back_as_the_launches_between_waited(wait):
    module = simulator.Module(CHAIN.replace("WAIT", wait))
    data, other, out = (torch.zeros(1, dtype=torch.int32) for _ in range(3))
    gpu = device()
    gpu.enqueue(module, "first", grid=1, block=1, args=[data])
    for kernel, args in (("between", [other]), ("last", [data, out])):
        gpu.enqueue(module, kernel, grid=1, block=1, args=args, programmatic_stream_serialization=True)
    if wait:
        gpu.synchronize()
        assert out.item() == 7
    else:
        with pytest.raises(
            simulator.SimError, match=r"may not be complete \(.* 'between', which did not wait\), which writes it"
        ):
            gpu.synchronize()


@pytest.mark.parametrize(("fault", "schedule"), [("trusts_block", "hold_block"), ("trusts_warp", "hold_warps")])
def test_only_a_priority_schedule_finds(fault, schedule):
    module = simulator.Module(planted.source("schedules", fault))
    family = FAMILIES["schedules"]

    def results(schedule):
        gpus = [device(seed, schedule=schedule, async_latency=1) for seed in range(SEEDS)]
        return [family.run(gpu, module)[0].tolist() for gpu in gpus]

    right = family.want().tolist()
    assert results("random") == [right] * SEEDS
    found = results(schedule)
    assert any(result != right for result in found)
    assert results(schedule) == found  # a seed is one schedule


def test_only_held_copies_are_late_enough():
    module = simulator.Module(planted.source("schedules", "trusts_copy"))
    family = FAMILIES["schedules"]
    for seed in range(SEEDS):
        assert torch.equal(family.run(device(seed, async_latency=1), module)[0], family.want())
    finding = rf"in flight\n  at kernel schedules, PTX line {planted.named_lines('schedules', 'trusts_copy')[0]}, block"
    findings = []
    for seed in range(SEEDS):
        try:
            family.run(device(seed, schedule="hold_copies", async_latency=1), module)
        except simulator.SimError as error:
            findings.append(str(error))
    assert findings
    assert all(re.search(finding, text) for text in findings)


@pytest.mark.parametrize("family", FAMILIES)
def test_assembler_takes_them(family, tmp_path):
    """The planted faults are legal PTX: nothing but their meaning is wrong."""
    if not shutil.which("ptxas"):
        pytest.skip("no ptxas on PATH")
    for fault in [None, *planted.faults(family)]:
        path = tmp_path / "kernel.ptx"
        path.write_text(planted.source(family, fault))
        subprocess.run(["ptxas", "-arch=sm_90a", "-o", tmp_path / "kernel.cubin", path], check=True)
