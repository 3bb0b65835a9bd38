"""Checkpoints: folders of safetensors files with the published names, in and out.

Three forms are known by their names:

* ``"experts"``: a tensor for each projection of each expert, as Hunyuan-Large (A52B) and Hunyuan-A13B are published;
* ``"packed"``: the experts of a layer in two tensors, as transformers' ``hunyuan_v1_moe`` holds them;
* ``"fp8"`` (read only): as ``"experts"``, linear layers in e4m3 with scalars ``weight_scale`` and ``input_scale``;
  gates, embedding and head are not quantized. Weights are dequantized into bf16; input scales are not used.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hunyuan_kernels.model.config import Config
from hunyuan_kernels.model.decoder import Decoder

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FORMS = ("experts", "packed")


@dataclass(frozen=True)
class Piece:
    """Where a tensor of a checkpoint lies in the model: a parameter, and which part of it."""

    parameter: str
    part: tuple[int | slice, ...] = ()
    #: Whether the FP8 form quantizes it.
    linear: bool = False


def pieces(config: Config, form: str) -> dict[str, Piece]:
    """All tensors of a checkpoint of this form, by their published names."""
    if form not in FORMS:
        raise ValueError(f"checkpoint: form is {form!r}; allowed: {', '.join(map(repr, FORMS))}")
    gate, up = slice(None, config.intermediate_size), slice(config.intermediate_size, None)
    found = {"model.embed_tokens.weight": Piece("embed_tokens"), "model.norm.weight": Piece("norm.weight")}
    if not config.tie_embeddings:
        found["lm_head.weight"] = Piece("lm_head")
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{theirs}.{norm}.weight"] = Piece(f"{ours}.{norm}.weight")
        for norm in ("query_layernorm", "key_layernorm"):
            found[f"{theirs}.self_attn.{norm}.weight"] = Piece(f"{ours}.attention.{norm}.weight")
        for name in ("q", "k", "v", "o") if config.owns_key_value(i) else ("q", "o"):
            weight = f"{name}_proj.weight"
            found[f"{theirs}.self_attn.{weight}"] = Piece(f"{ours}.attention.{weight}", linear=True)
        found[f"{theirs}.mlp.gate.wg.weight"] = Piece(f"{ours}.moe.gate")
        mlps: list[tuple[str, str, tuple[int, ...]]] = [("shared_mlp", "shared", ())]
        if form == "packed":
            found[f"{theirs}.mlp.experts.gate_up_proj"] = Piece(f"{ours}.moe.experts_gate_up")
            found[f"{theirs}.mlp.experts.down_proj"] = Piece(f"{ours}.moe.experts_down")
        else:
            mlps += [(f"experts.{e}", "experts", (e,)) for e in range(config.num_experts_of(i))]
        for name, parameter, expert in mlps:
            mlp = f"{theirs}.mlp.{name}"
            found[f"{mlp}.gate_proj.weight"] = Piece(f"{ours}.moe.{parameter}_gate_up", (*expert, gate), linear=True)
            found[f"{mlp}.up_proj.weight"] = Piece(f"{ours}.moe.{parameter}_gate_up", (*expert, up), linear=True)
            found[f"{mlp}.down_proj.weight"] = Piece(f"{ours}.moe.{parameter}_down", expert, linear=True)
    return found


# ---- sizes ----------------------------------------------------------------------------------------------------------

_NUMBERS = {
    "vocabulary_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}


def config_to_json(config: Config) -> dict[str, Any]:
    """The published ``config.json`` of these sizes."""
    kept = {theirs: getattr(config, ours) for ours, theirs in _NUMBERS.items()}
    per_layer = {"num_experts": config.num_experts, "moe_topk": config.top_k}
    return {
        "architectures": ["HunYuanForCausalLM" if config.cla_share_factor > 1 else "HunYuanMoEV1ForCausalLM"],
        "model_type": "hunyuan" if config.cla_share_factor > 1 else "hunyuan_v1_moe",
        **kept,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in per_layer.items()},
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": config.cla_share_factor > 1,
        "cla_share_factor": config.cla_share_factor,
        "rope_theta": config.rope_theta,
        "rope_scaling": None
        if config.rope_alpha == 1
        else {"type": "dynamic", "alpha": config.rope_alpha, "factor": 1.0},
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": config.attention_dropout,
        "hidden_act": "silu",
        "attention_bias": False,
    }


def config_from_json(values: dict[str, Any]) -> Config:
    """The sizes that a published ``config.json`` states.

    Raises:
        ValueError: a size is missing, or the model has a part that this one has not.
    """
    missing = [theirs for theirs in (*_NUMBERS.values(), "num_experts") if theirs not in values]
    if missing:
        raise ValueError(f"checkpoint: config.json lacks {', '.join(missing)}")
    required = {"use_qk_norm": True, "use_mixed_mlp_moe": True, "hidden_act": "silu", "attention_bias": False}
    for name, value in required.items():
        if values.get(name, value) != value:
            raise ValueError(f"checkpoint: config.json has {name} {values[name]!r}; {value!r} is required")
    numbers = {ours: values[theirs] for ours, theirs in _NUMBERS.items()}
    layers = numbers["num_layers"]
    shared = values.get("num_shared_expert", 1)
    if any(n != 1 for n in (shared if isinstance(shared, list) else [shared])):
        raise ValueError(f"checkpoint: config.json has num_shared_expert {shared!r}; 1 is required")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}

    def by_layer(name: str) -> int | tuple[int, ...]:
        value = values.get(name, 1)
        if not isinstance(value, list):
            return value
        return value[0] if len(set(value)) == 1 and len(value) == layers else tuple(value)

    top_k = by_layer("moe_topk")
    recycle = top_k == 1
    return Config(
        **numbers,
        num_key_value_heads=values.get("num_key_value_heads") or numbers["num_heads"],
        head_dim=values.get("head_dim") or numbers["hidden_size"] // numbers["num_heads"],
        num_experts=by_layer("num_experts"),
        top_k=top_k,
        capacity_factor=1.0 if recycle else None,
        overflow="recycle" if recycle else "drop",
        cla_share_factor=values.get("cla_share_factor", 1) if values.get("use_cla") else 1,
        rope_theta=values.get("rope_theta") or rope.get("rope_theta", 1e4),
        rope_alpha=rope.get("alpha") or 1.0,
        norm_epsilon=values.get("rms_norm_eps", 1e-5),
        tie_embeddings=values.get("tie_word_embeddings", False),
        attention_dropout=values.get("attention_dropout", 0.0),
    )


# ---- out ------------------------------------------------------------------------------------------------------------


def save(model: Decoder, folder: str | Path, form: str = "experts", *, shard_bytes: int = 5 * 2**30) -> list[Path]:
    """Writes config.json, the weights in files of up to ``shard_bytes``, and their index; returns the paths.

    Raises:
        ValueError: an unknown form.
        ModuleNotFoundError: the ``safetensors`` package is missing.
    """
    from safetensors.torch import save_file

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    shards: list[list[tuple[str, Tensor]]] = [[]]
    for name, piece in pieces(model.config, form).items():
        tensor = parameters[piece.parameter][piece.part]
        if shards[-1] and sum(t.nbytes for _, t in shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append((name, tensor))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    single = len(shards) == 1
    files = [SINGLE] if single else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file({name: tensor.contiguous() for name, tensor in shard}, folder / file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_to_json(model.config), indent=1) + "\n", encoding="utf-8")
    if not single:
        total = sum(tensor.nbytes for shard in shards for _, tensor in shard)
        where = {name: file for file, shard in zip(files, shards, strict=True) for name, _ in shard}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        files.append(INDEX)
    return [folder / file for file in ("config.json", *files)]


# ---- in -------------------------------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint: {path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"checkpoint: {path} holds a {type(values).__name__}; an object is required")
    return values


def _files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files, with the index's statement of which tensor is in which."""
    if (folder / INDEX).is_file():
        where = _json(folder / INDEX).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
            raise ValueError(f"checkpoint: {folder / INDEX} has no weight_map from names to files")
        for file in sorted(set(where.values())):
            if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
                raise ValueError(f"checkpoint: {INDEX} names {file!r}; safetensors files of the folder are allowed")
            if not (folder / file).is_file():
                raise ValueError(f"checkpoint: {INDEX} names {file}, which is not in {folder}")
        return [folder / file for file in sorted(set(where.values()))], where
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], None
    others = sorted(path.name for path in folder.glob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"})
    hint = f"; {others[0]} is a pickle, which can run code when it is read: convert it" if others else ""
    raise ValueError(f"checkpoint: {folder} has neither {SINGLE} nor {INDEX}{hint}")


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _open(files: list[Path], stack: ExitStack) -> Iterator[tuple[Path, Any]]:
    from safetensors import SafetensorError, safe_open

    for path in files:
        try:
            yield path, stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"checkpoint: {path} is not a whole safetensors file: {error}") from None


def _check_names(found: dict[str, Any], wanted: set[str]) -> None:
    if missing := wanted - set(found):
        raise ValueError(f"checkpoint: missing tensors: {_some(missing)}")
    if extra := set(found) - wanted:
        raise ValueError(f"checkpoint: tensors that this model has no place for: {_some(extra)}")


_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn}


def load(folder: str | Path, *, dtype: torch.dtype | None = None) -> Decoder:
    """The model of a checkpoint, in evaluation mode, its form recognized by the names.

    Everything is checked (names, shapes, dtypes, that files are whole) before the model is made. Then tensors are
    copied one by one out of mapped files: beside the model, no more than one file is in memory.

    Args:
        dtype: of the weights; None: that of the stored embedding. Gates keep the dtype in which they are stored.

    Raises:
        ValueError: what is wrong with which file or tensor. Pickles are not read.
        ModuleNotFoundError: the ``safetensors`` package is missing.
    """
    folder = Path(folder)
    config = config_from_json(_json(folder / "config.json"))
    files, where = _files(folder)
    with ExitStack() as stack:
        opened: dict[str, Any] = {}
        for path, file in _open(files, stack):
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name in opened:
                    raise ValueError(f"checkpoint: {name} is in more than one file, {path.name} is one of them")
                if where is not None and where.get(name, path.name) != path.name:
                    raise ValueError(f"checkpoint: {name} is in {path.name}; {INDEX} says {where[name]}")
                opened[name] = file
        form = "packed" if any(name.endswith(".experts.gate_up_proj") for name in opened) else "experts"
        wanted = pieces(config, form)
        scales = set()
        if any(name.endswith(".weight_scale") for name in opened):
            scales = {
                name.removesuffix("weight") + kind
                for name, piece in wanted.items()
                if piece.linear
                for kind in ("weight_scale", "input_scale")
            }
        _check_names(opened, set(wanted) | scales)
        with torch.device("meta"):
            model = Decoder(config)
        parameters = dict(model.named_parameters())
        stored = {}
        for name in (*wanted, *scales):
            part = opened[name].get_slice(name)
            kind, shape = part.get_dtype(), list(part.get_shape())
            quantized = bool(scales) and name in wanted and wanted[name].linear
            allowed = ["F8_E4M3"] if quantized else ["BF16", "F32", "F16"]
            if kind not in allowed:
                raise ValueError(f"checkpoint: {name} has dtype {kind}; allowed: {', '.join(allowed)}")
            required = list(parameters[wanted[name].parameter][wanted[name].part].shape) if name in wanted else []
            if shape != required and not (name in scales and shape == [1]):
                raise ValueError(f"checkpoint: {name} has shape {shape}; required: {required}")
            stored[name] = _DTYPES[kind]
        model.to(dtype or stored["model.embed_tokens.weight"])
        for i, moe in enumerate(model.moe_layers()):
            moe.gate.data = moe.gate.data.to(stored[f"model.layers.{i}.mlp.gate.wg.weight"])
        model.to_empty(device="cpu")
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, piece in wanted.items():
                tensor = opened[name].get_tensor(name)
                if stored[name] == torch.float8_e4m3fn:
                    scale = name.removesuffix("weight") + "weight_scale"
                    tensor = tensor.float() * opened[scale].get_tensor(scale).float()
                parameters[piece.parameter][piece.part].copy_(tensor)
    return model.eval()
