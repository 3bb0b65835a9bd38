"""moe and expert_mlp as one operator each on a CPU: the bits of the composed layer, its checks, its memory."""

import sys
from functools import partial

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.ops.routing import route_options
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets
from hunyuan_kernels.testing.specs.moe import SPECS, make_layer
from python_tests.memory import measured_peaks

layer = sys.modules["hunyuan_kernels.ops.moe"]  # the package names the function so, too
ISAS = supported_instruction_sets()
CASES = {case.label: case for case in SPECS[0].cases()}
E4M3 = torch.float8_e4m3fn


def bits(tensor):
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def composed(monkeypatch, function, *arguments, **options):
    with monkeypatch.context() as patch:
        patch.setattr(layer, "_is_inference_on_cpu", lambda *_: False)
        return function(*arguments, **options)


def called(function):
    """The names of our operators that a call goes through."""
    with torch.profiler.profile() as profile:
        function()
    return {event.name.split("::")[1] for event in profile.events() if event.name.startswith("hunyuan_kernels::")}


def packed(experts):
    """Experts whose weights are prepacked."""
    if isinstance(experts, hk.Fp8Experts):
        return experts._replace(gate_up=hk.prepack(experts.gate_up), down=hk.prepack(experts.down))
    return hk.Experts(*(hk.prepack(weights) for weights in experts))


@pytest.mark.parametrize("isa", ISAS)
def test_bits_of_the_composed_layer(isa, monkeypatch):
    """Every case of the specification: dtypes, FP8 and NF4 weights, capacities, shared expert and residual."""
    with instruction_set(isa):
        for label, case in CASES.items():
            arguments = case.make(1)
            got, logits, routing = hk.moe(**arguments, return_routing=True)
            want, *others = composed(monkeypatch, hk.moe, **arguments, return_routing=True)
            assert torch.equal(bits(got), bits(want)), label
            assert torch.equal(logits, others[0])
            for name, one, other in zip(routing._fields, routing, others[1], strict=True):
                assert torch.equal(one, other), f"{label}: {name}"
            rows = hk.expert_mlp(arguments["x"], routing, arguments["experts"])
            want = composed(monkeypatch, hk.expert_mlp, arguments["x"], routing, arguments["experts"])
            assert torch.equal(bits(rows), bits(want)), label


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", [1, 7, 40, 900])
def test_bits_with_packed_weights_and_any_number_of_rows(tokens, isa, monkeypatch):
    for quantized in (None, "none"):
        for dtype in (torch.bfloat16, torch.float32) if quantized is None else (torch.bfloat16,):
            arguments = make_layer(tokens, 3, 128, 96, dtype, quantized, ("shared", "residual"), {"top_k": 2}, 0)
            for experts in (arguments["experts"], packed(arguments["experts"])):
                with instruction_set(isa):
                    got = hk.moe(**arguments | {"experts": experts})
                    want = composed(monkeypatch, hk.moe, **arguments | {"experts": experts})
                assert torch.equal(bits(got), bits(want))


@pytest.mark.parametrize("isa", ISAS)
def test_bits_in_several_batches(isa, monkeypatch):
    """Rows between the GEMMs are more than 16 MiB: experts by themselves, together, and one in parts."""
    arguments = make_layer(1500, 6, 32, 8192, torch.bfloat16, None, ("shared",), {"top_k": 2}, 0)
    arguments["gate"] = torch.zeros_like(arguments["gate"])
    arguments["gate"][0] = arguments["x"].float().mean(0) + 0.05  # more than others, but not all
    _, _, routing = hk.moe(**arguments, return_routing=True)
    demand = sorted(routing.demand.tolist())
    assert demand[-1] > 1024 > demand[-3] > 0 == demand[0], demand
    with instruction_set(isa):
        assert torch.equal(bits(hk.moe(**arguments)), bits(composed(monkeypatch, hk.moe, **arguments)))


def test_strides_and_threads():
    arguments = make_layer(90, 8, 96, 40, torch.bfloat16, None, ("shared", "residual"), {"top_k": 3}, 0)
    want = hk.moe(**arguments)
    wide = torch.full((90, 101), float("nan"), dtype=torch.bfloat16)
    for name in ("x", "residual"):
        wide[:, 3:99] = arguments[name]
        arguments[name] = wide.clone()[:, 3:99]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(bits(hk.moe(**arguments)), bits(want))
    finally:
        torch.set_num_threads(threads)


def test_when_it_is_one_call():
    arguments = make_layer(20, 4, 96, 40, torch.float32, None, ("shared",), {}, 0)
    x, experts = arguments["x"], arguments["experts"]
    assert called(lambda: hk.moe(**arguments)) == {"moe"}
    routing = hk.route(x @ arguments["gate"].T, 1)
    assert called(lambda: hk.expert_mlp(x, routing, experts)) == {"expert_mlp"}
    with torch.autocast("cpu", torch.bfloat16):
        assert "moe" not in called(lambda: hk.moe(**arguments))
    for name in ("x", "gate"):
        trained = arguments | {name: arguments[name].clone().requires_grad_()}
        assert "moe" not in called(lambda trained=trained: hk.moe(**trained))
        with torch.no_grad():
            assert called(lambda trained=trained: hk.moe(**trained)) == {"moe"}
    trained = arguments | {"experts": experts._replace(down=experts.down.clone().requires_grad_())}
    assert "moe" not in called(lambda: hk.moe(**trained))
    fp8 = make_layer(20, 4, 96, 40, torch.bfloat16, "block_1x128", (), {}, 0)
    assert "dispatch_fp8" in called(lambda: hk.moe(**fp8))


@pytest.mark.parametrize("label", ["bfloat16, shared, residual", "bfloat16, FP8 experts, activations none", "float32"])
def test_compiles_as_one_graph(label):
    torch._dynamo.reset()
    arguments = CASES[f"top 3, capacity, padding, {label}"].make(0)
    compiled = torch.compile(partial(hk.moe, **arguments), fullgraph=True, backend="aot_eager")
    assert torch.equal(bits(compiled()), bits(hk.moe(**arguments)))


def op_arguments(quantized=None, dtype=torch.bfloat16):
    arguments = make_layer(20, 4, 128, 64, dtype, quantized, ("shared", "residual"), {}, 0)
    logits = arguments["x"].float() @ arguments["gate"].T
    routed, shared = layer._in_one_call(arguments["experts"], arguments["shared"])
    options = route_options(logits, 2, 12, "drop", 0, None, None)
    return arguments["x"], logits, options, routed, shared, arguments["residual"]


@pytest.mark.parametrize("quantized", [None, "none", "NF4"])
def test_opcheck(quantized):
    x, logits, options, routed, shared, residual = op_arguments(quantized)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    if quantized == "none":  # test_schema compares inputs with torch.allclose: it has no float8 on the CPU
        tests = tests[1:]
    torch.library.opcheck(ops.moe.default, (x, logits, *options, *routed, *shared, residual), test_utils=tests)
    routing = hk.route(logits, 2)
    inputs = (x, routing.token_ids, routing.expert_offsets, *routed)
    torch.library.opcheck(ops.expert_mlp.default, inputs, test_utils=tests)
    with pytest.raises(RuntimeError, match=r"ops\.hunyuan_kernels\.expert_mlp: is for inference; hunyuan_kernels\."):
        ops.expert_mlp(x.clone().requires_grad_(), *inputs[1:]).sum().backward()


BAD = {
    "experts.gate_up has dtype float32, but x has bfloat16": {"gate_up": lambda w: w.float()},
    "experts.gate_up stands for .4, 128, 127.; required: .E, 2I, H. with H = 128": {"gate_up": lambda w: w[..., 1:]},
    "experts.gate_up has shape .4, 127, 128.; dimension 1 must be even": {"gate_up": lambda w: w[:, 1:]},
    "experts.down stands for .4, 128, 63.; required: .E, H, I. = .4, 128, 64.": {"down": lambda w: w[..., 1:]},
    "experts.down stands for .3, 128, 64.": {"down": lambda w: w[1:]},
    "experts.gate_up_scale is None, but experts.gate_up has dtype float8": {"gate_up": lambda w: w.to(E4M3)},
    "residual has dtype float32": {"residual": lambda r: r.float()},
    r"residual has shape \[20, 127\]; required: that of x, \[20, 128\]": {"residual": lambda r: r[:, 1:]},
    "shared.down stands for .1, 127, 64.": {"shared": lambda s: s._replace(down=s.down[1:])},
    r"logits has shape \[20, 4\]; required: \[T, E\] = \[20, 3\]": {
        "gate_up": lambda w: w[1:],
        "down": lambda w: w[1:],
    },
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    arguments = make_layer(20, 4, 128, 64, torch.bfloat16, None, ("shared", "residual"), {}, 0)
    for name, change in BAD[message].items():
        if name in arguments:
            arguments[name] = change(arguments[name])
        else:
            weights = {name: change(getattr(arguments["experts"], name))}
            arguments["experts"] = arguments["experts"]._replace(**weights)
    with pytest.raises((RuntimeError, ValueError), match=f"^moe: {message}"):
        hk.moe(**arguments)


def test_bad_routing():
    x, logits, _, routed, *_ = op_arguments()
    routing = hk.route(logits, 2)
    experts = hk.Experts(routed[0], routed[2])
    for name, value, message in (
        ("token_ids", 20, "token_ids holds 20 at index 0; allowed: 0 to T - 1 = 19"),
        ("token_ids", -1, "token_ids holds -1 at index 0"),
        ("expert_offsets", 3, "expert_offsets starts with 3"),
    ):
        wrong = getattr(routing, name).clone()
        wrong[0] = value
        with pytest.raises(RuntimeError, match=f"^expert_mlp: {message}"):
            hk.expert_mlp(x, routing._replace(**{name: wrong}), experts)


def a_call(tokens):
    """64 MiB of rows between the GEMMs with 2048 tokens."""
    arguments = make_layer(tokens, 4, 256, 8192, torch.bfloat16, None, (), {"top_k": 2}, 0)
    return partial(hk.moe, **arguments)


def test_memory():
    """Weights (once, not counted here), activations, and 64 MiB."""
    sizes = (64, 512, 2048, 4096)  # with the first one threads start and libraries load
    rises = measured_peaks(*(partial(a_call, tokens) for tokens in sizes))
    for tokens, rise in zip(sizes[1:], rises[1:], strict=True):
        activations = (2 + 1) * tokens * 256 * 2  # y and the result
        assert rise <= activations + 64 * 2**20, f"{tokens} tokens: {rise / 2**20:.1f} MiB"
