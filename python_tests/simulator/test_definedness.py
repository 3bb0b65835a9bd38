"""Values of uninitialized shared memory: copied freely, found at their first use."""

import pytest
import torch
from hunyuan_kernels._C import simulator

# Lanes below 16 initialize their word of the tile; %u is the lane's word, %low is whether it is defined.
KERNEL = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 out) {{
  .reg .pred %low, %p;
  .reg .b16 %h<3>;
  .reg .b32 %lane, %at, %u, %q, %t;
  .reg .f32 %f<5>;
  .reg .b64 %rd<4>, %d;
  .shared .align 16 .b8 tile[128];
  .shared .align 16 .b8 other[128];
  ld.param.u64 %rd1, [out];
  mov.u32 %lane, %tid.x;
  mul.wide.u32 %rd2, %lane, 4;
  add.s64 %rd1, %rd1, %rd2;
  shl.b32 %at, %lane, 2;
  setp.lt.u32 %low, %lane, 16;
  mov.u32 %t, tile;
  add.u32 %at, %at, %t;
  @%low st.shared.u32 [%at], %lane;
  bar.warp.sync -1;
  ld.shared.u32 %u, [%at];
  mov.u32 %q, 7;
  {body}
  st.global.u32 [%rd1], %q;
  ret;
}}
"""
LANES = torch.arange(32, dtype=torch.int32)


def run(body, **options):
    out = torch.zeros(32, dtype=torch.int32)
    simulator.Gpu(**options).launch(simulator.Module(KERNEL.format(body=body)), "k", grid=1, block=32, args=[out])
    return out


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("", torch.full((32,), 7)),
        ("selp.b32 %q, %u, 5, %low;", torch.where(LANES < 16, LANES, 5)),
        ("@%low mov.u32 %q, %u;", torch.where(LANES < 16, LANES, 7)),
        ("@%low add.u32 %q, %u, %u;", torch.where(LANES < 16, 2 * LANES, 7)),
        ("shfl.sync.idx.b32 %q, %u, 3, 31, -1;", torch.full((32,), 3)),
        ("shfl.sync.bfly.b32 %t, %u, 16, 31, -1; @!%low mov.u32 %q, %t;", torch.where(LANES < 16, 7, LANES - 16)),
        ("mov.b64 %d, {%u, %lane}; mov.b64 {%t, %q}, %d;", LANES),
        ("mov.u32 %t, %u; mov.u32 %t, 3; mov.u32 %q, %t;", torch.full((32,), 3)),
        ("st.shared.u32 [%at], %u; st.shared.u32 [%at], 9; ld.shared.u32 %q, [%at];", torch.full((32,), 9)),
        ("add.u32 %u, %u, 1; setp.eq.u32 %p, %u, 4; selp.b32 %t, 1, 2, %p;", torch.full((32,), 7)),
        (
            "mov.b32 %f1, %u; mov.b32 %f2, %u; "
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1, %f2, %f3, %f4}, {%u, %lane, %u, %lane}, "
            "{%lane, %lane}, {0f00000000, 0f00000000, 0f00000000, 0f00000000}; @%low mov.b32 %q, 1;",
            torch.where(LANES < 16, 1, 7),
        ),
    ],
)
@pytest.mark.parametrize("split_warps", [False, True])
def test_copies_are_no_use(body, want, split_warps):
    for seed in range(3):
        assert torch.equal(run(body, seed=seed, split_warps=split_warps), want.int())


@pytest.mark.parametrize(
    ("body", "use", "lane"),
    [
        ("mov.u32 %q, %u;", "as the data of a store", 16),
        ("add.u32 %q, %u, 1;", "as the data of a store", 16),
        ("selp.b32 %q, 5, %u, %low;", "as the data of a store", 16),
        ("shfl.sync.idx.b32 %q, %u, 20, 31, -1;", "as the data of a store", 0),
        ("shfl.sync.bfly.b32 %q, %u, 16, 31, -1;", "as the data of a store", 0),
        ("mov.b64 %d, {%u, %lane}; mov.b64 {%q, %t}, %d;", "as the data of a store", 16),
        ("st.shared.u32 [other+4], %u; ld.shared.u32 %q, [other+4];", "as the data of a store", 0),
        ("setp.eq.u32 %p, %u, 4; selp.b32 %q, 1, 2, %p;", "as the data of a store", 16),
        ("setp.eq.u32 %p, %u, 4; @%p mov.u32 %q, 2;", "in a condition", 16),
        ("setp.eq.u32 %p, %u, 4; vote.sync.any.pred %p, %p, -1; @%p mov.u32 %q, 2;", "in a condition", 0),
        ("cvt.u64.u32 %d, %u; and.b64 %d, %d, 0; add.s64 %rd1, %rd1, %d;", "as an address", 16),
        ("atom.global.add.u32 %q, [%rd1], %u;", "as an operand", 16),
        ("bar.sync 0, %u;", "as an operand", 16),
        (
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1, %f2, %f3, %f4}, {%u, %lane, %u, %lane}, "
            "{%lane, %lane}, {0f00000000, 0f00000000, 0f00000000, 0f00000000}; mov.b32 %q, %f1;",
            "as the data of a store",
            16,
        ),
        (
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1, %f2, %f3, %f4}, {%lane, %lane, %lane, %lane}, "
            "{%u, %lane}, {0f00000000, 0f00000000, 0f00000000, 0f00000000}; mov.b32 %q, %f1;",
            "as the data of a store",
            2,
        ),
    ],
)
def test_use_is_found(body, use, lane):
    with pytest.raises(simulator.SimError) as error:
        run(body)
    assert f"is used {use}" in str(error.value)
    assert f"lane {lane}: " in str(error.value).splitlines()[1]
    # The last load of the shared memory: of %u, unless the body has one.
    text = KERNEL.format(body=body)
    load = text[: text.rindex("ld.shared.u32")].count("\n") + 1
    assert f"at PTX line {load} by lane" in str(error.value)


def test_the_check_can_be_switched_off():
    assert run("mov.u32 %q, %u;", check_uninitialized_shared=False)[:16].equal(LANES[:16])
