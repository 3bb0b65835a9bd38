"""Weights kept in FP8 and weights laid out by prepack: against the dequantized model, in memory, on disk."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from hunyuan_kernels import simulated_gpu
from hunyuan_kernels.model import Config, Decoder, checkpoint, generate
from hunyuan_kernels.model.train import train
from python_tests.backends import needs_device_code
from python_tests.memory import measured_peaks
from python_tests.model.test_decoder import tokens

pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")

CONFIG = Config(
    vocabulary_size=40,
    hidden_size=64,
    num_layers=4,
    num_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=48,
    num_experts=8,
)
LAYER = "model.layers.1.mlp.experts.5"


def make(**changes):
    torch.manual_seed(0)
    return Decoder(Config(**{**vars(CONFIG), **changes})).eval()


@pytest.fixture
def saved(tmp_path):
    """Scales that differ, of weights and of inputs: a mix-up shows."""
    model = make(top_k=3, overflow="drop")
    names = [name.removesuffix(".weight") for name, p in checkpoint.pieces(model.config, "fp8").items() if p.linear]
    with torch.no_grad():
        for i, name in enumerate(names):
            piece = checkpoint.pieces(model.config, "fp8")[f"{name}.weight"]
            model.get_parameter(piece.parameter)[piece.part] *= 0.5 + i % 5 / 4
    checkpoint.save(model, tmp_path, "fp8", input_scales={name: 0.02 + i % 3 * 0.01 for i, name in enumerate(names)})
    return tmp_path


def distance(got, want):
    return float((got.float() - want).norm() / want.norm())


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fp8", ["none", "static"])
def test_logits_are_those_of_the_dequantized_model(saved, fp8, packed):
    want, kept = checkpoint.load(saved)(tokens()).logits, checkpoint.load(saved, fp8=fp8)
    if packed:
        assert kept.prepack() is kept
    got = kept(tokens()).logits
    # Without rounding of inputs only the order of sums differs. Each of 8 roundings to e4m3 in a row (4 layers of
    # attention and experts) errs by 2^-4 / sqrt(3) in the mean square, and experts near a tie change.
    assert distance(got, want) < (1e-4 if fp8 == "none" else 0.2)
    assert fp8 == "none" or distance(got, want) > 1e-3, "inputs are rounded, too"


def fp8_tensors(model):
    fields = (getattr(module, name, None) for module in model.modules() for name in ("fp8", "shared_fp8"))
    found = [value for field in fields if field is not None for value in field if isinstance(value, torch.Tensor)]
    assert found
    return found


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fp8", ["none", "static"])
def test_moves_with_the_model(saved, fp8, packed):
    """Weights and scales go where the parameters go, and stay one copy; other dtypes are not for them."""
    model = checkpoint.load(saved, fp8=fp8)
    if packed:
        model.prepack()
    want = model(tokens()).logits
    first = fp8_tensors(model)
    model._apply(torch.clone)
    assert torch.equal(model(tokens()).logits, want)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    weights = [tensor for tensor in fp8_tensors(model) if tensor.dtype == torch.float8_e4m3fn]
    assert {tensor.data_ptr() for tensor in weights} <= own.difference(tensor.data_ptr() for tensor in first)
    assert torch.equal(model.to(want.dtype)(tokens()).logits, want)
    assert {tensor.device.type for tensor in fp8_tensors(model.to("meta"))} == {"meta"}


@torch.no_grad()
def test_experts_beside_the_parameters_move(saved):
    model = checkpoint.load(saved)
    for layer in model.moe_layers():
        layer.fp8 = layer.quantized_experts()
    want = model(tokens()).logits
    assert torch.equal(model._apply(torch.clone)(tokens()).logits, want)
    assert {tensor.device.type for tensor in fp8_tensors(model.to("meta"))} == {"meta"}


def test_weights_take_one_byte(saved):
    kept, want = checkpoint.load(saved, fp8="static"), checkpoint.load(saved)
    for name, parameter in kept.named_parameters():
        linear = any(part in name for part in ("proj", "experts", "shared"))
        assert parameter.dtype == (torch.float8_e4m3fn if linear else torch.float32), name
        assert parameter.shape == want.get_parameter(name).shape
        assert not (linear and parameter.requires_grad)
    layer = kept.layers[0]
    for fp8, plain in (
        (layer.attention.qkv_proj.fp8.weight, layer.attention.qkv_proj.weight),
        (layer.moe.fp8.down, layer.moe.experts_down),
        (layer.moe.shared_fp8.gate_up, layer.moe.shared_gate_up),
    ):
        assert fp8.data_ptr() == plain.data_ptr(), "one copy"


def test_round_trip(saved, tmp_path):
    """Bit for bit, scales included."""
    from python_tests.model.test_checkpoint import read_all

    before = read_all(saved)
    for fp8 in ("none", "static"):
        checkpoint.save(checkpoint.load(saved, fp8=fp8), tmp_path / "again", "fp8")
        after = read_all(tmp_path / "again")
        assert after.keys() == before.keys()
        for name, tensor in after.items():
            assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (tensor, before[name]))), name


@pytest.mark.parametrize("fp8", ["none", "static"])
def test_generate(saved, fp8):
    kept, prompts = checkpoint.load(saved, fp8=fp8), tokens(batch=2, length=9).tolist()
    want = generate(kept, prompts, 12, draft=3)
    assert generate(kept.prepack(), prompts, 12, draft=3, cache_dtype=torch.bfloat16).tokens[0][0] == want.tokens[0][0]
    assert all(len(made) == 12 for made in want.tokens)
    if fp8 == "none":
        assert generate(checkpoint.load(saved), prompts, 12).tokens == want.tokens


def test_training_around_frozen_weights(saved, tmp_path):
    """What is not in FP8 gets the gradients that it has in the dequantized model, and learns; FP8 stays as it is."""
    kept, plain = checkpoint.load(saved, fp8="none").train(), checkpoint.load(saved).train()
    losses = []
    for model in (kept, plain):
        out = model(tokens(), seed=0)
        losses.append(F.cross_entropy(out.logits.flatten(0, 1), tokens(seed=2).flatten()))
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1])
    learning = [name for name, parameter in kept.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[-1] for name in learning} == {"embed_tokens", "weight", "gate"}
    for name in learning:
        assert distance(kept.get_parameter(name).grad, plain.get_parameter(name).grad) < 1e-3, name
    before = {name: parameter.detach().clone() for name, parameter in kept.named_parameters()}
    first, *_, last = train(kept, itertools.repeat(tokens(length=17)), 20, learning_rate=1e-2)
    assert last.loss < first.loss - 0.5
    for name, parameter in kept.named_parameters():
        same = torch.equal(parameter.view(torch.uint8), before[name].view(torch.uint8))
        assert same == (name not in learning), name
    checkpoint.save(kept, tmp_path / "again", "fp8")
    got = checkpoint.load(tmp_path / "again", fp8="none")(tokens()).logits
    torch.testing.assert_close(got, kept.eval()(tokens()).logits)


@pytest.mark.parametrize("strict", [True, False])
def test_no_state_dict_holds_scales(saved, strict):
    plain, kept = checkpoint.load(saved), checkpoint.load(saved, fp8="none")
    other = checkpoint.load(saved, fp8="none")
    other.layers[3].moe.experts_down.data.view(torch.uint8)[0, 0, 0] ^= 1
    wrapped = torch.nn.Sequential(make())
    of_wrapped = {f"0.{name}": value for name, value in kept.state_dict().items()}
    for model, state, first, count in (
        (plain, kept.state_dict(), "layers.0.attention.qkv_proj.weight_scale", 24),
        (kept, plain.state_dict(), "layers.0.attention.qkv_proj.weight_scale", 24),
        (wrapped, of_wrapped, "0.layers.0.attention.qkv_proj.weight_scale", 24),
        (kept, other.state_dict(), "layers.3.moe.experts_down_scale", 1),
    ):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        more = f" and {count - 3} more;" if count > 3 else ";"
        with pytest.raises(RuntimeError, match=rf"^Decoder: state_dict .* lacks their scales: {first}.*{more}"):
            model.load_state_dict(state, strict=strict)
        for name, value in model.state_dict().items():
            assert torch.equal(value.view(torch.uint8), before[name].view(torch.uint8)), name
    state = kept.state_dict() | {"norm.weight": torch.full((64,), 3.0)}
    assert kept.load_state_dict(state, strict=strict).missing_keys == []
    assert kept.norm.weight[0] == 3


WIDE = {"vocabulary_size": 512, "hidden_size": 1024, "num_layers": 2, "intermediate_size": 1024, "num_experts": 6}


def loads(folder, **options):
    checkpoint.save(make().bfloat16(), folder / "small", "fp8")
    checkpoint.load(folder / "small", **options)  # libraries load with the first call
    return partial(checkpoint.load, folder / "wide", **options)


def test_half_the_memory(tmp_path):
    checkpoint.save(make(**WIDE).bfloat16(), tmp_path / "wide", "fp8", shard_bytes=4 * 2**20)
    plain, kept = measured_peaks(*(partial(loads, tmp_path, fp8=fp8) for fp8 in (None, "static")))
    assert kept <= 0.6 * plain


def test_packed_gives_the_same():
    model, x = make().bfloat16(), tokens()
    with torch.no_grad():
        want = model(x).logits.float()
        assert distance(model.prepack()(x).logits, want) < 2**-7
    assert model.packed
    assert model.prepack() is model
    assert all(p.dim() > 3 for name, p in model.named_parameters() if "proj" in name)


@needs_device_code
@pytest.mark.parametrize("fp8", [None, "none"])
def test_packed_on_a_gpu(fp8, tmp_path):
    """FP8 weights get the order of a GPU; bf16 ones have it."""
    checkpoint.save(make(num_layers=2, intermediate_size=64).bfloat16(), tmp_path, "fp8")
    model, want = (checkpoint.load(tmp_path, dtype=torch.bfloat16, fp8=fp8) for _ in range(2))
    prompts = tokens(batch=1, length=5).tolist()
    with simulated_gpu(check_races=False, split_warps=False) as gpu:
        made = generate(model.prepack(), prompts, 2).tokens
        assert model.packed == (fp8 is not None)
        assert generate(want, prompts, 2).tokens == made
    assert any("_packed" in report.kernel for report in gpu.reports) == (fp8 is not None)


@pytest.mark.parametrize(("activations", "packs"), [(None, False), ("none", True), ("block_1x128", False)])
@pytest.mark.parametrize("intermediate_size", [64, 40])
def test_what_a_gpu_packs(activations, packs, intermediate_size):
    """Without a GPU: tensors that have a device and no memory. Weights of other sizes are read as they are."""
    packed = packs and intermediate_size == 64
    with FakeTensorMode(), torch.device("cuda"):
        model = make(intermediate_size=intermediate_size)
        before = {name: parameter.shape for name, parameter in model.named_parameters()}
        for layer in model.moe_layers():
            layer.fp8 = None if activations is None else layer.quantized_experts(activations)
        assert model.prepack() is model
        assert {name: parameter.shape for name, parameter in model.named_parameters()} == before
        for layer in model.moe_layers():
            assert layer.fp8 is None or layer.fp8.gate_up.dim() == layer.fp8.down.dim() == (5 if packed else 3)
    assert model.packed == packed


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: checkpoint.load(f, fp8="dynamic"), ValueError, "fp8 is 'dynamic'; allowed: 'none', 'static', None"),
        (lambda f: checkpoint.load(f, dtype=torch.float16), ValueError, "dtype is torch.float16; allowed: torch.bfl"),
        (lambda f: checkpoint.load(f, fp8="static").train(), RuntimeError, "rounded to e4m3 .*, which has no gradient"),
        (lambda f: checkpoint.load(f, fp8="none").prepack().train(), RuntimeError, "packed, for inference only"),
        (lambda f: checkpoint.load(f).prepack().train(), RuntimeError, "packed, for inference only"),
        (lambda f: checkpoint.save(checkpoint.load(f).prepack(), f), ValueError, "is packed; save it before prepack"),
        (lambda f: checkpoint.save(checkpoint.load(f, fp8="none"), f), ValueError, "form is 'experts'; allowed for a"),
        (
            lambda f: checkpoint.save(checkpoint.load(f, fp8="none").bfloat16(), f, "fp8"),
            ValueError,
            "allowed: torch.float8_e",
        ),
        (lambda f: make(head_dim=4).prepack(), ValueError, r"num_key_value_heads \* head_dim is 8; a multiple of 16"),
        (lambda f: make(intermediate_size=40).prepack(), ValueError, "intermediate_size is 40; a multiple of 16"),
    ],
)
def test_bad_input(saved, call, error, message):
    with pytest.raises(error, match=message):
        call(saved)


def test_plain_checkpoints_are_not_fp8(tmp_path):
    checkpoint.save(make(), tmp_path)
    with pytest.raises(ValueError, match="holds the form 'experts', whose weights are not FP8"):
        checkpoint.load(tmp_path, fp8="static")


@pytest.mark.parametrize(
    ("scale", "value"), [("weight_scale", float("nan")), ("weight_scale", -1.0), ("input_scale", 0.0)]
)
def test_hostile_scales(saved, scale, value):
    from python_tests.model.test_checkpoint import change

    change(saved, lambda t: t.update({f"{LAYER}.up_proj.{scale}": torch.tensor(value)}))
    with pytest.raises(ValueError, match=rf"{LAYER}.up_proj.{scale} is {value}; a positive number is required"):
        checkpoint.load(saved)
