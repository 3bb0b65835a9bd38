"""Checkpoints: the published names, both ways, and what is refused."""

import json

import pytest
import torch

from hunyuan_kernels.model import Decoder, checkpoint
from python_tests.model.test_decoder import CONFIG, make, tokens

safetensors = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")

SMALL_SHARD = 20_000


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(make(), tmp_path, shard_bytes=SMALL_SHARD)
    return tmp_path


@pytest.mark.parametrize("form", checkpoint.FORMS)
@pytest.mark.parametrize("shard_bytes", [SMALL_SHARD, 2**30])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cla_share_factor": 1, "top_k": 3, "tie_embeddings": False, "rope_alpha": 1e3},
        {"num_experts": (8, 4, 2, 6), "top_k": (2, 1, 2, 3)},
    ],
    ids=["large", "a13b", "by layer"],
)
def test_what_is_written_is_read(tmp_path, form, shard_bytes, changes):
    model = make(capacity_factor=None, overflow="drop", **changes).eval()
    files = checkpoint.save(model, tmp_path, form, shard_bytes=shard_bytes)
    assert (checkpoint.INDEX in {file.name for file in files}) == (shard_bytes == SMALL_SHARD)
    got = checkpoint.load(tmp_path)
    assert {n: p.shape for n, p in got.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in got.named_parameters())
    assert torch.equal(got(tokens()).logits, model(tokens()).logits)


def test_names_of_hunyuan_large(saved):
    names = set(json.loads((saved / checkpoint.INDEX).read_text())["weight_map"])
    assert {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.3.input_layernorm.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.self_attn.key_layernorm.weight",
        "model.layers.2.self_attn.k_proj.weight",
        "model.layers.0.mlp.gate.wg.weight",
        "model.layers.0.mlp.experts.7.gate_proj.weight",
        "model.layers.0.mlp.shared_mlp.down_proj.weight",
    } <= names
    assert not {"lm_head.weight", "model.layers.1.self_attn.k_proj.weight"} & names
    assert len(names) == 2 + 4 * (4 + 2 + 1 + 3 * 9) + 2 * 2


def test_gate_halves_are_not_swapped(saved):
    model = make()
    where = json.loads((saved / checkpoint.INDEX).read_text())["weight_map"]
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    stored = safetensors.load_file(saved / where[name])[name]
    assert torch.equal(stored, model.layers[1].moe.experts_gate_up[5, 24:])


def test_published_fp8(tmp_path):
    model = make()
    tensors = {}
    for name, piece in checkpoint.pieces(CONFIG, "experts").items():
        tensor = model.get_parameter(piece.parameter).detach()[piece.part].bfloat16()
        if piece.linear:
            scale = tensor.abs().max().float() / 448
            tensors[name.removesuffix("weight") + "weight_scale"] = scale
            tensors[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.5)
            tensor = (tensor.float() / scale).to(torch.float8_e4m3fn)
        tensors[name] = tensor.contiguous()
    safetensors.save_file(tensors, tmp_path / checkpoint.SINGLE)
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.config_to_json(CONFIG)))
    got = checkpoint.load(tmp_path)
    for name, parameter in got.named_parameters():
        want = model.get_parameter(name)
        bound = want.abs() * (2**-4 + 2**-7) + want.abs().max() / 448 * 2**-10
        assert ((parameter - want).abs() <= bound).all(), name
    del tensors["model.layers.0.self_attn.q_proj.weight_scale"]
    safetensors.save_file(tensors, tmp_path / checkpoint.SINGLE)
    with pytest.raises(ValueError, match=r"missing tensors: model.layers.0.self_attn.q_proj.weight_scale"):
        checkpoint.load(tmp_path)


def first_file(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def change(folder, function):
    tensors = safetensors.load_file(first_file(folder))
    function(tensors)
    safetensors.save_file(tensors, first_file(folder))


def change_index(folder, function):
    index = json.loads((folder / checkpoint.INDEX).read_text())
    function(index["weight_map"])
    (folder / checkpoint.INDEX).write_text(json.dumps(index))


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: first_file(f).write_bytes(first_file(f).read_bytes()[:-9]), "is not a whole safetensors file"),
        (lambda f: first_file(f).write_bytes(b"abc"), "is not a whole safetensors file"),
        (lambda f: torch.save({"a": torch.ones(3)}, first_file(f)), "is not a whole safetensors file"),
        (lambda f: change(f, lambda t: t.pop(NORM)), f"missing tensors: {NORM}"),
        (lambda f: change(f, lambda t: t.update(more=torch.ones(1))), "this model has no place for: more"),
        (
            lambda f: change(f, lambda t: t.update({NORM: torch.ones(7)})),
            r"norm.weight has shape \[7\]; required: \[32",
        ),
        (lambda f: change(f, lambda t: t.update({NORM: torch.ones(32).int()})), "norm.weight has dtype I32; allowed"),
        (
            lambda f: change_index(f, lambda m: m.update({NORM: "../x.safetensors"})),
            "names '../x.safetensors'; safetens",
        ),
        (
            lambda f: change_index(f, lambda m: m.update({NORM: "/x.safetensors"})),
            "names '/x.safetensors'; safetensors",
        ),
        (lambda f: change_index(f, lambda m: m.update({NORM: "model.bin"})), "names 'model.bin'; safetensors files"),
        (
            lambda f: change_index(f, lambda m: m.update({NORM: "x.safetensors"})),
            "names x.safetensors, which is not in",
        ),
        (
            lambda f: change_index(f, lambda m: m.update({NORM: sorted(set(m.values()))[1]})),
            "norm.weight is in model-00001.* says model-00002",
        ),
        (lambda f: first_file(f).unlink(), "which is not in"),
        (lambda f: (f / "config.json").write_text("{}"), "config.json lacks vocab_size"),
        (lambda f: (f / "config.json").write_text("[1]"), "holds a list; an object is required"),
        (lambda f: (f / checkpoint.INDEX).write_text("{"), "cannot be read"),
        (lambda f: (f / checkpoint.INDEX).write_text("{}"), "has no weight_map"),
    ],
)
def test_what_is_refused(saved, spoil, message):
    spoil(saved)
    with pytest.raises(ValueError, match=f"checkpoint: .*{message}"):
        checkpoint.load(saved)


def test_pickles_are_not_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.config_to_json(CONFIG)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"neither model.safetensors nor .*; pytorch_model.bin is a pickle"):
        checkpoint.load(tmp_path)


def test_unknown_form(tmp_path):
    with pytest.raises(ValueError, match="form is 'gguf'; allowed: 'experts', 'packed'"):
        checkpoint.save(Decoder(CONFIG), tmp_path, "gguf")
