"""Checkpoints: the published names, both ways, and what is refused."""

import json
import os
import struct
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from hunyuan_kernels.model import Config, Decoder, checkpoint
from hunyuan_kernels.reference.quantize import quantize_fp8
from hunyuan_kernels.testing.memory import MemoryProbe
from python_tests.model.test_decoder import CONFIG, make, tokens

safetensors = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")

SMALL_SHARD = 20_000


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(make(), tmp_path, shard_bytes=SMALL_SHARD)
    return tmp_path


@pytest.mark.parametrize("form", ["experts", "packed"])
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


def read_all(folder):
    return {name: t for file in folder.glob("*.safetensors") for name, t in safetensors.load_file(file).items()}


LAYER = "model.layers.1.mlp.experts.5"


@pytest.mark.parametrize("shard_bytes", [SMALL_SHARD, 2**30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_both_ways(tmp_path, shard_bytes, dtype):
    model = make().to(dtype)
    with torch.no_grad():
        model.layers[1].moe.experts_gate_up[5, 24:] *= 64  # up alone: one scale for both would lose gate's bits
    given = {f"{LAYER}.up_proj": 0.25, f"{LAYER}.down_proj": 2}
    checkpoint.save(model, tmp_path, "fp8", shard_bytes=shard_bytes, input_scales=given)
    tensors = read_all(tmp_path)
    for name, piece in checkpoint.pieces(CONFIG, "fp8").items():
        want, stored = model.get_parameter(piece.parameter).detach()[piece.part], tensors.pop(name)
        if not piece.linear:
            assert stored.dtype == dtype
            assert torch.equal(stored, want), name
            continue
        q, scale = quantize_fp8(want, "tensor")
        layer = name.removesuffix(".weight")
        assert torch.equal(stored.view(torch.uint8), q.view(torch.uint8)), name
        assert torch.equal(tensors.pop(f"{layer}.weight_scale"), scale), name
        input_scale = tensors.pop(f"{layer}.input_scale")
        assert input_scale.dtype == torch.float32
        assert input_scale == given.get(layer, 1.0), name
    assert not tensors
    quantization = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert quantization["activation_scheme"] == "static"
    assert {"lm_head", "model.layers.3.mlp.gate.wg"} <= set(quantization["ignored_layers"])

    got = checkpoint.load(tmp_path)
    for name, piece in checkpoint.pieces(CONFIG, "fp8").items():
        want, loaded = (m.get_parameter(piece.parameter)[piece.part].float() for m in (model, got))
        bound = want.abs() * (2**-4 + 2**-7) + want.abs().max() / 448 * 2**-10 if piece.linear else 0
        assert ((loaded - want).abs() <= bound).all(), name
    before = read_all(tmp_path)
    checkpoint.save(got, tmp_path / "again", "fp8")
    for name, tensor in read_all(tmp_path / "again").items():
        if tensor.dtype == torch.float8_e4m3fn:
            assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8)), name


def test_fp8_without_its_scales(tmp_path):
    checkpoint.save(make(), tmp_path, "fp8")
    change(tmp_path, lambda t: t.pop("model.layers.0.self_attn.q_proj.weight_scale"))
    with pytest.raises(ValueError, match=r"missing tensors: model.layers.0.self_attn.q_proj.weight_scale"):
        checkpoint.load(tmp_path)
    checkpoint.save(make(), tmp_path, "fp8")
    change(tmp_path, lambda t: t.update({f"{LAYER}.up_proj.weight_scale": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"up_proj.weight_scale has shape \[2\]; required: \[\]"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("form", "scales", "message"),
    [
        ("fp8", {"model.layers.0.mlp.gate.wg": 1.0}, "input_scales names model.layers.0.mlp.gate.wg; allowed: the lin"),
        ("experts", {f"{LAYER}.up_proj": 1.0}, f"input_scales names {LAYER}.up_proj; allowed: .* of the form 'fp8'"),
        ("fp8", {f"{LAYER}.up_proj": 0.0}, "is 0.0; allowed: 1.18e-38 to 3.4"),
        ("fp8", {f"{LAYER}.up_proj": float("nan")}, "is nan; allowed: 1.18e-38"),
    ],
)
def test_wrong_input_scales(tmp_path, form, scales, message):
    with pytest.raises(ValueError, match=f"checkpoint: {message}" if "names" in message else message):
        checkpoint.save(make(), tmp_path, form, input_scales=scales)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_what_was_there(saved, monkeypatch):
    want, calls, write = read_all(saved), [], safetensors.save_file

    def full_disk(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("no space left")
        write(*arguments, **options)

    monkeypatch.setattr(safetensors, "save_file", full_disk)
    files = sorted(saved.iterdir())
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(make(seed=1), saved, shard_bytes=SMALL_SHARD)
    assert sorted(saved.iterdir()) == files
    got = read_all(saved)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("shard_bytes", [2 * SMALL_SHARD, 2**30])
def test_the_later_save_counts(saved, shard_bytes):
    model = make(seed=1)
    checkpoint.save(model, saved, shard_bytes=shard_bytes)
    got = checkpoint.load(saved)
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in got.named_parameters())


MIB = 2**20
SHARD = 12 * MIB
#: Large enough that a second shard, or all of them, stand out: weights of 92 MiB in bf16, tensors of 2 MiB at most.
WIDE = Config(
    vocabulary_size=1024,
    hidden_size=1024,
    num_layers=2,
    num_heads=8,
    num_key_value_heads=2,
    head_dim=128,
    intermediate_size=1024,
    num_experts=6,
)


def wide():
    torch.manual_seed(0)
    return Decoder(WIDE).bfloat16()


def saves(folder, form):
    checkpoint.save(make(), folder / "small", form)  # libraries load with the first call
    return partial(checkpoint.save, wide(), folder / "wide", form, shard_bytes=SHARD)


def loads(folder):
    checkpoint.load(folder / "small")
    return partial(checkpoint.load, folder / "wide")


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is read from Linux")
@pytest.mark.parametrize("form", checkpoint.FORMS)
def test_peak_memory_is_a_file_above_the_model(tmp_path, form):
    with MemoryProbe() as probe:
        saving = probe.peak(partial(saves, tmp_path, form))
        loading = probe.peak(partial(loads, tmp_path))
    sizes = [file.stat().st_size for file in (tmp_path / "wide").glob("*.safetensors")]
    model = sum(parameter.nbytes for parameter in wide().parameters())
    assert len(sizes) > 3
    assert saving <= max(sizes) + 4 * MIB
    assert model - MIB <= loading <= model + max(sizes) + 4 * MIB


def first_file(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def change(folder, function):
    tensors = safetensors.load_file(first_file(folder))
    function(tensors)
    safetensors.save_file(tensors, first_file(folder))


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def change_index(folder, function):
    index = json.loads((folder / checkpoint.INDEX).read_text())
    function(index["weight_map"])
    (folder / checkpoint.INDEX).write_text(json.dumps(index))


def change_header(folder, function):
    """Of the first file, as bytes: what comes out need not be one."""
    data = first_file(folder).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    changed = json.dumps(function(json.loads(data[8 : 8 + size]))).encode()
    first_file(folder).write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + size :])


def change_header_size(folder, size):
    first_file(folder).write_bytes(struct.pack("<Q", size) + first_file(folder).read_bytes()[8:])


def put_into_second_file(folder):
    second = sorted(folder.glob("*.safetensors"))[1]
    safetensors.save_file(safetensors.load_file(second) | {NORM: torch.ones(32)}, second)


def put_head(folder, function, drop=False):
    """Into another file than that of the embedding, and into the index."""
    embedding, last = read_all(folder)["model.embed_tokens.weight"], sorted(folder.glob("*.safetensors"))[-1]
    tensors = safetensors.load_file(last) | {"lm_head.weight": function(embedding)}
    safetensors.save_file(tensors, last)
    change_index(folder, lambda where: where.update({"lm_head.weight": last.name}))
    if drop:
        change(folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))
        change_index(folder, lambda where: where.pop("model.embed_tokens.weight"))


def remove_everywhere(folder):
    change(folder, lambda t: t.pop(NORM))
    change_index(folder, lambda m: m.pop(NORM))


def replace_by_link(folder, target):
    name = first_file(folder)
    name.unlink()
    name.symlink_to(target)


def replace_config_by_pipe(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: first_file(f).write_bytes(first_file(f).read_bytes()[:-9]), "is not a whole safetensors file"),
        (lambda f: first_file(f).write_bytes(b"abc"), "is not a whole safetensors file"),
        (lambda f: torch.save({"a": torch.ones(3)}, first_file(f)), "is not a whole safetensors file"),
        (remove_everywhere, f"missing tensors: {NORM}"),
        (lambda f: change(f, lambda t: t.update(more=torch.ones(1))), "this model has no place for: more"),
        (
            lambda f: put_head(f, lambda e: e + 2**-9),
            "lm_head.weight differs from model.embed_tokens.weight, but config",
        ),
        (
            lambda f: put_head(f, lambda e: e[1:].clone()),
            r"lm_head.weight has shape \[39, 32\]; config.json ties it to",
        ),
        (lambda f: put_head(f, torch.flatten), r"lm_head.weight has shape \[1280\]; config.json ties it to model.emb"),
        (lambda f: put_head(f, lambda e: e, drop=True), r"lm_head.weight has shape \[40, 32\]; config.json ties it to"),
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
        (lambda f: replace_by_link(f, "nowhere"), "which is not in"),
        (lambda f: replace_by_link(f, f), "which is not in"),
        (lambda f: replace_by_link(f, "/dev/zero"), "which is not in"),
        (put_into_second_file, f"{NORM} is in more than one file, model-00002.* is one of them"),
        (lambda f: change(f, lambda t: t.pop(NORM)), f"names tensors that its files lack: {NORM}"),
        (lambda f: change_index(f, lambda m: m.update(more=m[NORM])), "names tensors that its files lack: more"),
        (lambda f: change_index(f, lambda m: m.clear()), "config.json has 4 layers; the files hold 0 tensors"),
        (lambda f: change_header_size(f, 2**63), "is not a whole safetensors file"),
        (lambda f: change_header_size(f, 10**9), "is not a whole safetensors file"),
        (lambda f: change_header_size(f, 10), "is not a whole safetensors file"),
        (lambda f: change_header_size(f, 0), "is not a whole safetensors file"),
        (lambda f: change_header(f, lambda h: {**h, NORM: {**h[NORM], "shape": [-32]}}), "is not a whole safetens"),
        (lambda f: change_header(f, lambda h: {**h, NORM: {**h[NORM], "shape": [2**40, 2**40]}}), "is not a whole"),
        (lambda f: change_header(f, lambda h: {**h, NORM: {**h[NORM], "dtype": "F4"}}), "is not a whole safetensors"),
        (lambda f: change_header(f, lambda h: {**h, NORM: {**h[NORM], "data_offsets": [0, 10**12]}}), "is not a whole"),
        (lambda f: change_header(f, lambda h: h | {NORM: h["model.embed_tokens.weight"]}), "is not a whole safetens"),
        (lambda f: change(f, lambda t: t.update(x_scale=torch.tensor(1j))), "this model has no place for: x_scale"),
        (replace_config_by_pipe, "config.json cannot be read: no such file"),
        (lambda f: (f / "config.json").write_text("{}"), "config.json lacks vocab_size"),
        (lambda f: change_config(f, num_hidden_layers=10**9), "config.json has 1000000000 layers; the files hold"),
        (lambda f: change_config(f, hidden_size=10**9), "config.json describes .* parameters; the files hold"),
        (lambda f: change_config(f, head_dim=None, num_attention_heads=0), "hidden_size 32 with num_attention_heads 0"),
        (
            lambda f: change_config(f, head_dim=None, num_attention_heads="4"),
            "with num_attention_heads '4'; a multiple",
        ),
        (lambda f: change_config(f, rope_scaling={"type": "default", "alpha": 9.0}), "'default'.*with alpha, is requi"),
        (lambda f: change_config(f, norm_topk_prob=False), "has norm_topk_prob False; True is required"),
        (lambda f: change_config(f, routed_scaling_factor=2.5), "has routed_scaling_factor 2.5; 1.0 is required"),
        (lambda f: change_config(f, group_limited_greedy=True), "has group_limited_greedy True; False is required"),
        (lambda f: change_config(f, position_embedding_xdrope=True), "has position_embedding_xdrope True; False is"),
        (lambda f: change_config(f, hidden_act="gelu"), "has hidden_act 'gelu'; 'silu' is required"),
        (lambda f: change_config(f, num_shared_expert=2), "has num_shared_expert 2; 1 is required"),
        (lambda f: change_config(f, rope_scaling="yes"), "rope_scaling 'yes'; an object or null is required"),
        (lambda f: change_config(f, rope_scaling={"type": "yarn", "factor": 4.0}), "'yarn'.*; type 'default', or"),
        (lambda f: change_config(f, rope_scaling={"type": "dynamic", "factor": 4.0}), "'dynamic'.*with alpha, is req"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "cannot be read"),
        (lambda f: (f / "config.json").write_text("[1]"), "holds a list; an object is required"),
        (lambda f: (f / checkpoint.INDEX).write_text("{"), "cannot be read"),
        (lambda f: (f / checkpoint.INDEX).write_text("{}"), "has no weight_map"),
    ],
)
def test_what_is_refused(saved, spoil, message):
    spoil(saved)
    with pytest.raises(ValueError, match=f"checkpoint: .*{message}"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": "4"}, "num_layers is '4'; an integer"),
        ({"num_hidden_layers": True}, "num_layers is True; an integer"),
        ({"hidden_size": 32.0}, "hidden_size is 32.0; an integer"),
        ({"vocab_size": -1}, "vocabulary_size is -1; an integer from 1 to"),
        ({"vocab_size": 10**4000}, "vocabulary_size is 10+; an integer from 1 to"),
        ({"num_experts": [[8]] * 4}, r"num_experts is \[8\]; an integer from 1 to"),
        ({"rope_theta": 10**400}, "rope_theta is 10+; a positive number, 1e-100 to 1e100"),
        ({"rope_scaling": {"type": "dynamic", "alpha": 1e308}}, "rope_alpha is 1e.308; a positive number"),
        ({"tie_word_embeddings": "no"}, "tie_embeddings is 'no'; True or False"),
        ({"num_experts": [8, "8", 8, 8]}, r"num_experts is \(8, '8', 8, 8\); an integer"),
        ({"head_dim": [8]}, r"head_dim is \[8\]; an integer"),
        ({"rope_theta": float("nan")}, "rope_theta is nan; a positive number"),
        ({"rms_norm_eps": "small"}, "norm_epsilon is 'small'; a positive number"),
        ({"attention_dropout": float("inf")}, "attention_dropout is inf; a probability"),
    ],
)
def test_hostile_sizes(saved, values, message):
    change_config(saved, **values)
    with pytest.raises(ValueError, match=f"Config: {message}"):
        checkpoint.load(saved)


def test_pickles_are_not_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.config_to_json(CONFIG)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"neither model.safetensors nor .*; pytorch_model.bin is a pickle"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (make(), {"form": "gguf"}, "form is 'gguf'; allowed: 'experts', 'packed', 'fp8'"),
        (make(), {"shard_bytes": 0}, "shard_bytes is 0; at least 1 is required"),
        (make(), {"shard_bytes": float("nan")}, "shard_bytes is nan; at least 1 is required"),
        (make().double(), {}, "embed_tokens has dtype torch.float64; allowed: torch.bfloat16, torch.float32, "),
    ],
)
def test_refused_saves(tmp_path, model, options, message):
    with pytest.raises(ValueError, match=f"checkpoint: {message}"):
        checkpoint.save(model, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_files_may_be_links(saved, tmp_path_factory):
    """As the hub's cache has them: only the index is to stay within the folder."""
    blob = tmp_path_factory.mktemp("blobs") / "0123"
    name = first_file(saved)
    name.rename(blob)
    name.symlink_to(blob)
    assert checkpoint.load(saved).config == CONFIG


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_head_may_be_stored_twice(tmp_path, monkeypatch, dtype):
    model = make().bfloat16().to(dtype)
    checkpoint.save(model, tmp_path, shard_bytes=SMALL_SHARD)
    put_head(tmp_path, lambda embedding: embedding.float())  # of another dtype, with the same values
    got = checkpoint.load(tmp_path)
    assert got.lm_head is None
    assert torch.equal(got.embed_tokens, model.embed_tokens)
    checkpoint.save(got, tmp_path / "again")
    assert "lm_head.weight" not in read_all(tmp_path / "again")
    monkeypatch.setattr(checkpoint, "_COMPARED", 100)
    checkpoint.load(tmp_path)
    put_head(tmp_path, lambda embedding: torch.cat([embedding[:-1], 2 * embedding[-1:]]))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs"):
        checkpoint.load(tmp_path)


def test_fine_tuning_may_differ(saved):
    options = {"attention_dropout": 0.1, "hidden_dropout": 0.2, "capacity_factor": 1.5, "overflow": "drop"}
    model = checkpoint.load(saved, **options)
    assert model.config == replace(CONFIG, **options)
    assert torch.equal(model(tokens()).logits, checkpoint.load(saved)(tokens()).logits)
    out = model.train()(tokens())
    assert not torch.equal(out.logits, model(tokens()).logits)
    out.logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="checkpoint: num_layers cannot be set; allowed: attention_dropout, hidden"):
        checkpoint.load(saved, num_layers=2)
    with pytest.raises(ValueError, match=r"Config: hidden_dropout is 1\.5; a probability"):
        checkpoint.load(saved, hidden_dropout=1.5)


def test_head_dim_may_be_left_to_the_hidden_size(saved):
    change_config(saved, head_dim=None)
    assert checkpoint.load(saved).config.head_dim == CONFIG.head_dim


@pytest.mark.parametrize("value", [1j, float("nan"), 0.0, -1.0, float("inf")])
def test_hostile_scales_of_dequantized_weights(tmp_path, value):
    checkpoint.save(make(), tmp_path, "fp8")
    change(tmp_path, lambda t: t.update({f"{LAYER}.up_proj.weight_scale": torch.tensor(value)}))
    with pytest.raises(ValueError, match=f"checkpoint: {LAYER}.up_proj.weight_scale (is|has dtype) "):
        checkpoint.load(tmp_path)
