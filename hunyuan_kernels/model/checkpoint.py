"""Checkpoints: folders of safetensors files with the published names, in and out.

Three forms are known by their names:

* ``"experts"``: a tensor for each projection of each expert, as Hunyuan-Large (A52B) and Hunyuan-A13B are published;
* ``"packed"``: the experts of a layer in two tensors, as transformers' ``hunyuan_v1_moe`` holds them;
* ``"fp8"``: as ``"experts"``, linear layers in e4m3 with scalars ``weight_scale`` and ``input_scale``, as Hunyuan's FP8
  checkpoints are published; gates, embedding, norms and head are not quantized. ``load`` dequantizes them, or keeps
  them as they are.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.model.config import Config
from hunyuan_kernels.model.config_json import config_from_json, config_to_json
from hunyuan_kernels.model.decoder import Decoder
from hunyuan_kernels.model.fp8 import ACTIVATIONS, FP8, Part, use_fp8

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FORMS = ("experts", "packed", "fp8")
#: Of tensors that are not in FP8: as stored, and as loaded.
_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float32}


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
        attention, first = f"{theirs}.self_attn", 0
        shared = config.num_key_value_heads if config.owns_key_value(i) else 0
        for name, heads in (("q", config.num_heads), ("k", shared), ("v", shared)):
            rows = slice(first * config.head_dim, (first + heads) * config.head_dim)
            first += heads
            if heads:
                found[f"{attention}.{name}_proj.weight"] = Piece(f"{ours}.attention.qkv_proj.weight", (rows,), True)
        found[f"{attention}.o_proj.weight"] = Piece(f"{ours}.attention.o_proj.weight", linear=True)
        found[f"{theirs}.mlp.gate.wg.weight"] = Piece(f"{ours}.moe.gate")
        mlps: list[tuple[str, str, tuple[int, ...]]] = [("shared_mlp", "shared", ())]
        if form == "packed":  # of the three the only one with tensors that hold several experts
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


# ---- out ------------------------------------------------------------------------------------------------------------


def _scale_names(name: str) -> tuple[str, str]:
    """Names of the scales of a quantized weight: its own, and its input's."""
    return f"{name}_scale", f"{name.removesuffix('weight')}input_scale"


def _check_input_scales(scales: Mapping[str, float], linear: set[str]) -> None:
    if unknown := set(scales) - linear:
        raise ValueError(
            f"checkpoint: input_scales names {_some(unknown)}; allowed: the linear layers of the form 'fp8'"
        )
    normal = torch.finfo(torch.float32)
    for name, scale in scales.items():
        if not normal.tiny <= scale <= normal.max:  # NaN, too
            raise ValueError(
                f"checkpoint: input_scales[{name!r}] is {scale}; allowed: {normal.tiny:.3g} to {normal.max:.3g}"
            )


def save(
    model: Decoder,
    folder: str | Path,
    form: str = "experts",
    *,
    shard_bytes: int = 5 * 2**30,
    input_scales: Mapping[str, float] | None = None,
) -> list[Path]:
    """Writes config.json, the weights in files of up to ``shard_bytes``, and their index; returns the paths.

    A single tensor larger than that has a file of its own.

    Files are written beside their place and moved there when all are whole: an error leaves what the folder held.
    What has to be made for a file, such as quantized weights, is in memory for one file at a time.

    Args:
        model: its weights are written in the dtype they have, linear layers of the form ``"fp8"`` in e4m3 with
            ``weight_scale`` = amax / 448 of that matrix (gate and up are two).
        input_scales: form ``"fp8"`` alone: by the published name of a linear layer
            (``model.layers.0.mlp.experts.3.down_proj``) the largest magnitude of its input, from calibration, over 448.
            Layers without one get that with which they were loaded into FP8, or 1.0, under which inputs up to 448 are
            represented, small ones coarsely.

    Raises:
        ValueError: an unknown form; no bytes for a file; input scales that name no such layer, are not positive, or are
            for another form; a packed model; one that is kept in FP8 in another form; weights of another dtype than
            bf16, fp32 and fp16, or that were kept in FP8 and converted since.
        ModuleNotFoundError: the ``safetensors`` package is missing.
    """
    from safetensors.torch import save_file

    wanted = pieces(model.config, form)
    if not shard_bytes >= 1:  # NaN, too
        raise ValueError(f"checkpoint: shard_bytes is {shard_bytes}; at least 1 is required")
    if model.packed:
        raise ValueError("checkpoint: the model is packed; save it before prepack")
    if model.fp8_scales and form != "fp8":
        raise ValueError(f"checkpoint: form is {form!r}; allowed for a model that is kept in FP8: 'fp8'")
    linear = {name.removesuffix(".weight") for name, piece in wanted.items() if piece.linear and form == "fp8"}
    _check_input_scales(input_scales or {}, linear)
    given = {layer: scale for layer, (_, scale) in model.fp8_scales.items()} | dict(input_scales or {})
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    kept = {piece.parameter for name, piece in wanted.items() if name.removesuffix(".weight") in model.fp8_scales}
    for name, parameter in parameters.items():
        allowed = (FP8,) if name in kept else (torch.bfloat16, torch.float32, torch.float16)
        if parameter.dtype not in allowed:
            raise ValueError(f"checkpoint: {name} has dtype {parameter.dtype}; allowed: {', '.join(map(str, allowed))}")

    def stored(name: str) -> dict[str, Tensor]:
        """A weight as it is written, with its scales. Made for one file at a time."""
        tensor = parameters[wanted[name].parameter][wanted[name].part]
        if (layer := name.removesuffix(".weight")) not in linear:
            return {name: tensor.contiguous()}
        if layer in model.fp8_scales:
            q, scale = tensor.contiguous(), torch.tensor(model.fp8_scales[layer][0])
        else:
            exact = tensor if tensor.dtype in (torch.bfloat16, torch.float32) else tensor.float()
            q, scale = hk.quantize_fp8(exact, "tensor")
        weight_scale, input_scale = _scale_names(name)
        return {name: q, weight_scale: scale, input_scale: torch.tensor(given.get(layer, 1.0), dtype=torch.float32)}

    def size(name: str) -> int:
        tensor = parameters[wanted[name].parameter][wanted[name].part]
        return tensor.numel() + 8 if name.removesuffix(".weight") in linear else tensor.nbytes

    shards: list[list[str]] = [[]]
    filled = 0
    for name in wanted:
        if shards[-1] and filled + size(name) > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size(name)
    single = len(shards) == 1
    files = [SINGLE] if single else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as name_of_temporary:
        temporary = Path(name_of_temporary)
        for file, names in zip(files, shards, strict=True):
            tensors = {key: tensor for name in names for key, tensor in stored(name).items()}
            save_file(tensors, temporary / file, metadata={"format": "pt"})
            where |= dict.fromkeys(tensors, file)
            del tensors  # before the next ones are made
        config = config_to_json(model.config)
        if form == "fp8":
            config["quantization_config"] = _quantization_config(wanted)
        _write_json(temporary / "config.json", config)
        if not single:
            total = sum(map(size, wanted))
            _write_json(temporary / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
            files.append(INDEX)
        # What makes a folder a checkpoint goes first and comes last: a move that fails leaves none, never a mixture.
        for file in (INDEX, SINGLE):
            (folder / file).unlink(missing_ok=True)
        for file in ("config.json", *files):
            (temporary / file).replace(folder / file)
    return [folder / file for file in ("config.json", *files)]


def _quantization_config(wanted: dict[str, Piece]) -> dict[str, Any]:
    """What readers of the published FP8 form look for in config.json."""
    gates = [name.removesuffix(".weight") for name in wanted if name.endswith(".gate.wg.weight")]
    return {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": [*gates, "lm_head"]}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


# ---- in -------------------------------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # a pipe would wait for its writer
            raise FileNotFoundError("no such file")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A mapped file, its header checked; what was read of it leaves memory at the end."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint: {path} is not a whole safetensors file: {error}") from None


class _Stored(NamedTuple):
    """What a file's header says of a tensor."""

    path: Path
    dtype: str
    shape: list[int]


def _headers(files: list[Path], where: dict[str, str] | None) -> tuple[dict[str, _Stored], dict[str, float]]:
    """All tensors of the files by name, and the values of the scalars among them that are scales."""
    found: dict[str, _Stored] = {}
    scales: dict[str, float] = {}
    for path in files:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name in found:
                    raise ValueError(f"checkpoint: {name} is in more than one file, {path.name} is one of them")
                if where is not None and where.get(name, path.name) != path.name:
                    raise ValueError(f"checkpoint: {name} is in {path.name}; {INDEX} says {where[name]}")
                part = file.get_slice(name)
                found[name] = _Stored(path, part.get_dtype(), list(part.get_shape()))
                scalar = found[name].dtype in _DTYPES and math.prod(found[name].shape) == 1
                if name.endswith("_scale") and scalar:
                    scales[name] = float(file.get_tensor(name))  # may be in another file than the weight
    if where is not None and (lacking := set(where) - set(found)):
        raise ValueError(f"checkpoint: {INDEX} names tensors that its files lack: {_some(lacking)}")
    return found, scales


def _check_size(config: Config, found: dict[str, _Stored]) -> None:
    """Before anything is made by numbers of config.json: a wrong one could ask for more than there is."""
    stored = sum(math.prod(tensor.shape) for tensor in found.values())
    if config.num_layers > len(found):
        raise ValueError(f"checkpoint: config.json has {config.num_layers} layers; the files hold {len(found)} tensors")
    if config.num_parameters > 2 * stored + 2**20:
        raise ValueError(
            f"checkpoint: config.json describes {config.num_parameters} parameters; the files hold {stored}"
        )


#: Elements of a stored head that are compared with the embedding at a time, so that no second copy is in memory.
_COMPARED = 2**24


def _take_tied_head(found: dict[str, _Stored]) -> None:
    """Some writers store a head that is tied to the embedding a second time: taken out, once it is the same."""
    head, embedding = found["lm_head.weight"], found.get("model.embed_tokens.weight")
    if embedding is None or head.shape != embedding.shape or len(head.shape) != 2:
        raise ValueError(
            f"checkpoint: lm_head.weight has shape {head.shape}; config.json ties it to model.embed_tokens.weight"
            + ("" if embedding is None else f", which has shape {embedding.shape}")
        )
    rows = max(1, _COMPARED // max(1, head.shape[1]))
    with _opened(head.path) as of_head, _opened(embedding.path) as of_embedding:
        parts = of_head.get_slice("lm_head.weight"), of_embedding.get_slice("model.embed_tokens.weight")
        for first in range(0, head.shape[0], rows):
            one, other = (part[first : first + rows] for part in parts)
            if not torch.equal(one.float(), other.float()):
                raise ValueError(
                    "checkpoint: lm_head.weight differs from model.embed_tokens.weight, but config.json ties them; set "
                    "tie_word_embeddings to false there, or remove one of the tensors"
                )
    del found["lm_head.weight"]


def _check_names(found: dict[str, _Stored], wanted: set[str]) -> None:
    if missing := wanted - set(found):
        raise ValueError(f"checkpoint: missing tensors: {_some(missing)}")
    if extra := set(found) - wanted:
        raise ValueError(f"checkpoint: tensors that this model has no place for: {_some(extra)}")


def _check_tensors(
    found: dict[str, _Stored], model: Decoder, wanted: dict[str, Piece], linear: set[str], scales: dict[str, float]
) -> None:
    parameters = dict(model.named_parameters())
    of_linear = {scale for name in linear for scale in _scale_names(name)}
    for name in (*wanted, *of_linear):
        _, kind, shape = found[name]
        allowed = ["F8_E4M3"] if name in linear else list(_DTYPES)
        if kind not in allowed:
            raise ValueError(f"checkpoint: {name} has dtype {kind}; allowed: {', '.join(allowed)}")
        required = list(parameters[wanted[name].parameter][wanted[name].part].shape) if name in wanted else []
        if shape != required and not (name in of_linear and shape == [1]):
            raise ValueError(f"checkpoint: {name} has shape {shape}; required: {required}")
        if name in of_linear and not 0 < scales[name] < math.inf:  # NaN, too
            raise ValueError(f"checkpoint: {name} is {scales[name]}; a positive number is required")


#: Of Config: what a model is trained with, and config.json does not state or only suggests.
TRAINING = ("attention_dropout", "hidden_dropout", "capacity_factor", "overflow")


def load(folder: str | Path, *, dtype: torch.dtype | None = None, fp8: str | None = None, **training: Any) -> Decoder:
    """The model of a checkpoint, in evaluation mode, its form recognized by the names.

    Everything is checked (names, shapes, dtypes, that files are whole) before the model is made. Then tensors are
    copied one by one out of one mapped file after another: beside the model, no more than one file is in memory.

    A head that is tied to the embedding may be stored a second time, with the same values.

    Args:
        dtype: of the weights, bf16 or fp32; None: that of the stored embedding (fp32 for fp16). Gates keep the dtype in
            which they are stored.
        fp8: of the form ``"fp8"`` alone: keeps linear layers in e4m3, in half the memory of bf16. ``"static"``: their
            inputs are rounded to e4m3, too, under the stored scales (the largest of those that share an input), for
            inference; ``"none"``: inputs stay as they are, and all that is not in FP8 can be trained. None: weights are
            dequantized.
        training: for fine-tuning, those of ``TRAINING`` that are to differ from what :class:`Config` has by default (of
            top-1 routing a capacity factor of 1 with recycling, of others no capacity) and config.json states.

    Raises:
        ValueError: what is wrong with which argument, file or tensor. Pickles are not read.
        ModuleNotFoundError: the ``safetensors`` package is missing.
    """
    if dtype not in (None, torch.bfloat16, torch.float32):
        raise ValueError(f"checkpoint: dtype is {dtype}; allowed: torch.bfloat16, torch.float32, None")
    if fp8 not in (None, *ACTIVATIONS):
        raise ValueError(f"checkpoint: fp8 is {fp8!r}; allowed: {', '.join(map(repr, ACTIVATIONS))}, None")
    if unknown := set(training) - set(TRAINING):
        raise ValueError(f"checkpoint: {_some(unknown)} cannot be set; allowed: {', '.join(TRAINING)}")
    folder = Path(folder)
    config = replace(config_from_json(_json(folder / "config.json")), **training)
    files, where = _files(folder)
    found, scales = _headers(files, where)
    _check_size(config, found)
    form = "packed" if any(name.endswith(".experts.gate_up_proj") for name in found) else "experts"
    if any(name.endswith(".weight_scale") for name in found):
        form = "fp8"
    elif fp8 is not None:
        raise ValueError(f"checkpoint: fp8 is {fp8!r}; {folder} holds the form {form!r}, whose weights are not FP8")
    wanted = pieces(config, form)
    if config.tie_embeddings and "lm_head.weight" in found:
        _take_tied_head(found)
    linear = {name for name, piece in wanted.items() if piece.linear and form == "fp8"}
    _check_names(found, set(wanted) | {scale for name in linear for scale in _scale_names(name)})
    with torch.device("meta"):
        model = Decoder(config)
    _check_tensors(found, model, wanted, linear, scales)
    model.to(dtype or _DTYPES[found["model.embed_tokens.weight"].dtype])
    for i, moe in enumerate(model.moe_layers()):
        moe.gate.data = moe.gate.data.to(_DTYPES[found[f"model.layers.{i}.mlp.gate.wg.weight"].dtype])
    if fp8 is not None:
        for parameter in {wanted[name].parameter for name in linear}:
            model.get_parameter(parameter).requires_grad_(False).data = model.get_parameter(parameter).to(FP8)
    model.to_empty(device="cpu")
    parameters = dict(model.named_parameters())
    for path in files:
        with _opened(path) as file, torch.no_grad():
            for name, piece in wanted.items():
                if found[name].path != path:
                    continue
                tensor = file.get_tensor(name)
                if name in linear and fp8 is None:
                    tensor = tensor.float().mul_(scales[_scale_names(name)[0]])
                parameters[piece.parameter][piece.part].copy_(tensor)
                del tensor  # keeps the file mapped
    if fp8 is not None:
        parts = {}
        for name in linear:
            weight_scale, input_scale = (scales[scale] for scale in _scale_names(name))
            piece = wanted[name]
            parts[name.removesuffix(".weight")] = Part(piece.parameter, piece.part, weight_scale, input_scale)
        use_fp8(model, parts, fp8)
    return model.eval()
