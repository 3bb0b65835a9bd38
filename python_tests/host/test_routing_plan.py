"""What the host decides for route, routing_from_ids and load_balancing_loss, before any device is involved."""

import re

import pytest
import torch
from hunyuan_kernels._C import plans
from hypothesis import given
from hypothesis import strategies as st

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from python_tests.backends import needs_device_code

SOURCES = ["float32", "bfloat16", "int32", "int64"]


def plan(tokens: int, experts: int, source: str = "bfloat16", top_k: int = 1, **options: object) -> plans.RoutingPlan:
    return plans.routing(source=plans.DType[source], tokens=tokens, top_k=top_k, experts=experts, **options)


def launches(*arguments: object, **options: object) -> list[str]:
    return [str(launch) for launch in plan(*arguments, **options).launches]


def test_one_cluster() -> None:
    """Hunyuan-Large and A13B at 4096 tokens: one launch, counts in distributed shared memory."""
    assert launches(4096, 16) == ["routing_cluster_bfloat16_4 grid 8x1x1 block 512x1x1 cluster 8x1x1 shared 1544"]
    (a13b,) = plan(4096, 64, top_k=8).launches
    assert (a13b.kernel, a13b.grid, a13b.cluster) == ("routing_cluster_bfloat16_4", (8, 1, 1), (8, 1, 1))
    assert launches(1, 16) == ["routing_cluster_bfloat16_4 grid 1x1x1 block 512x1x1 shared 1544"]
    assert [launch.cluster[0] for launch in plan(1025, 16).launches] == [4], "clusters are powers of two"


def test_text_holds_everything() -> None:
    assert str(plan(8192, 16, capacity=512, recycle=True)).splitlines() == [
        "routing of 8192 tokens, 1 of 16 experts, from bfloat16: 16 chunks, workspace 66560 bytes",
        "  routing_choose_bfloat16_4 grid 16x1x1 block 512x1x1 shared 1544",
        "  routing_assign grid 16x1x1 block 512x1x1 cluster 8x1x1 shared 1544",
    ]


@given(
    source=st.sampled_from(SOURCES),
    tokens=st.integers(0, 65536),
    experts=st.integers(1, 256),
    top_k=st.integers(1, 8),
    recycle=st.booleans(),
    capability=st.sampled_from([80, 86, 89, 90, 100, 120]),
)
def test_how_many_launches(source, tokens, experts, top_k, recycle, capability) -> None:
    """At most two; one for up to 4096 tokens and 64 experts where there are clusters."""
    capacity = 100 if recycle else None
    p = plan(tokens, experts, source, top_k, capacity=capacity, recycle=recycle, capability=capability)
    clusters = capability >= 90
    assert len(p.launches) == (1 if tokens <= (4096 if clusters else 512) else 2)
    for launch in p.launches:
        assert launch.grid[0] * 512 >= tokens
        assert launch.grid[0] % launch.cluster[0] == 0
        assert launch.cluster[0] <= (8 if clusters else 1)
        assert launch.programmatic
    by_chunk = 4 * p.chunks * top_k * experts if len(p.launches) == 2 else 0
    assert p.workspace_bytes == by_chunk + (8 * tokens if recycle else 0)


@needs_device_code
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("experts", [1, 128, 129, 256, 257, 512])
def test_the_device_code_has_the_kernels(source, experts) -> None:
    entries = re.findall(r"\.entry (\w+)\(", ops.device_ptx("routing"))
    planned = [launch for tokens in (5, 5000) for launch in plan(tokens, experts, source).launches]
    if source in ("float32", "bfloat16"):
        sizes = {"dtype": plans.DType[source], "tokens": 9, "experts": experts}
        planned.append(plans.route_backward(**sizes))
        for backward in (False, True):
            planned += plans.load_balancing_loss(**sizes, backward=backward).launches
    assert {launch.kernel for launch in planned} <= set(entries)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 513}, "route: experts are 513; allowed on a GPU: at most 512. Route on the CPU"),
        (
            {"experts": 512, "top_k": 200},
            "route: top_k is 200 with 512 experts: counting takes 1241096 bytes of shared memory, a block has 231424",
        ),
        ({"experts": 512, "shared_bytes": 48 * 1024}, "top_k is 1 with 512 experts: counting takes 49160 bytes of"),
    ],
)
def test_what_no_launch_can_do(options, message) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        plan(100, **options)


def test_the_loss() -> None:
    loss = plans.load_balancing_loss(dtype=plans.DType.bfloat16, tokens=4096, experts=16)
    assert str(loss).splitlines() == [
        "load-balancing loss of 4096 tokens, 16 experts",
        "  routing_loss_bfloat16_4 grid 16x1x1 block 256x1x1",
        "  routing_loss_sum grid 1x1x1 block 256x1x1",
    ]
    assert loss.workspace_bytes == 8 * 16
    gradient = plans.load_balancing_loss(dtype=plans.DType.float32, tokens=300, experts=512, backward=True)
    assert [str(launch) for launch in gradient.launches] == [
        "routing_loss_backward_float32_16 grid 10x1x1 block 256x1x1"
    ]
    assert gradient.workspace_bytes == 0
    assert len(plans.load_balancing_loss(dtype=plans.DType.float32, tokens=0, experts=4).launches) == 1


@needs_device_code
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "most"),
    [(0, 16, 1, 1), (4096, 64, 1, 1), (4096, 16, 1, 1), (4097, 64, 1, 2), (20_000, 16, 1, 2), (5000, 256, 2, 2)],
)
def test_what_is_launched(tokens, experts, top_k, most) -> None:
    """Counted: the whole of route, and its gradient, whatever the seed and the number of tokens on the device are."""
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    counted = torch.tensor([tokens // 2], dtype=torch.int32)
    options = {"capacity": tokens // experts, "overflow": "recycle"} if top_k == 1 else {}
    with hk.simulated_gpu(check_races=False, split_warps=False) as gpu:
        routing = hk.route(logits, top_k, seed=torch.tensor([7]), num_tokens=counted, **options)
        forward = len(gpu.reports)
        routing.weights.sum().backward()
    assert forward == most
    assert len(gpu.reports) - forward == (1 if tokens else 0)
    want = hk.route(logits, top_k, seed=7, num_tokens=counted, **options)
    assert all(
        torch.equal(getattr(routing, name), getattr(want, name)) for name in routing._fields if name != "weights"
    )
