"""The decoder beside transformers' ``HunYuanMoEV1ForCausalLM`` on the same weights: a layer, and generation.

Errors are held against those that the specification (plain PyTorch) makes in the dtype of the model: ours may be
``_AS_WRONG_AS`` times as large. Bounds of several roundings in a row would be much looser.
"""

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hunyuan_kernels.model import Config, Decoder, checkpoint, generate, preset
from hunyuan_kernels.model.attention import Positions
from hunyuan_kernels.model.config_json import config_to_json
from hunyuan_kernels.model.generate import Generated
from hunyuan_kernels.model.rope import rope_of
from hunyuan_kernels.reference import decoder as reference
from hunyuan_kernels.testing.compare import Comparison
from hunyuan_kernels.testing.providers import TRANSFORMERS_EXPERTS, load, refuse_copies
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work
from hunyuan_kernels.testing.specs.grouped_gemm import make_weights

_AS_WRONG_AS = 4.0


def make_model(config: Config, dtype: torch.dtype, seed: int) -> Decoder:
    """In evaluation mode, with gates in fp32 as they are published, and gains that are not 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = Decoder(config)
    model.to(dtype)
    for moe in model.moe_layers():
        moe.gate.data = moe.gate.float()
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        if parameter.dim() == 1:
            values = 0.5 + torch.rand(parameter.shape, generator=generator)
        elif parameter.dim() == 2:
            values = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
        else:
            experts, rows, columns = parameter.shape
            values = make_weights((experts, rows, columns), parameter.dtype, generator)
        parameter.data.copy_(values)
    return model.eval().requires_grad_(False)


def published(model: Decoder) -> dict[str, Tensor]:
    """The weights by their names in transformers; no copies."""
    pieces = checkpoint.pieces(model.config, "packed").items()
    return {name: model.get_parameter(piece.parameter).detach()[piece.part] for name, piece in pieces}


def _of_layer(model: Decoder, layer: int) -> dict[str, Tensor]:
    prefix = f"model.layers.{layer}."
    return {name.removeprefix(prefix): w for name, w in published(model).items() if name.startswith(prefix)}


# ---- transformers ---------------------------------------------------------------------------------------------------

_theirs: "weakref.WeakKeyDictionary[Decoder, Any]" = weakref.WeakKeyDictionary()


def theirs_of(model: Decoder, implementation: str) -> Any:
    """``HunYuanMoEV1ForCausalLM`` on the weights of ``model`` themselves, with experts by ``implementation``.

    Raises:
        NotImplementedError: it is not installed, or computes something else than this model.
    """
    config = model.config
    if config.cla_share_factor > 1 or config.top_k == 1:
        raise NotImplementedError("transformers has no shared keys and values, and weighs a single expert by 1")
    load("transformers")
    if model not in _theirs:
        try:
            from transformers import HunYuanMoEV1Config, HunYuanMoEV1ForCausalLM
        except ImportError as error:
            raise NotImplementedError(f"this transformers has no hunyuan_v1_moe: {error}") from None
        from hunyuan_kernels.integrations.transformers import register

        register()
        with torch.device("meta"):
            made = HunYuanMoEV1ForCausalLM(HunYuanMoEV1Config(**config_to_json(config))).eval()
        made.model.rotary_emb = type(made.model.rotary_emb)(made.config)
        for name, weight in published(model).items():
            path, _, leaf = name.rpartition(".")
            setattr(made.get_submodule(path), leaf, nn.Parameter(weight, requires_grad=False))
        if config.tie_embeddings:
            made.lm_head.weight = made.model.embed_tokens.weight
        made.generation_config.eos_token_id = None
        made.generation_config.pad_token_id = 0
        _theirs[model] = made
    _theirs[model].set_experts_implementation(implementation)
    return _theirs[model]


def _refuse_copies(model: Decoder, tokens: int, implementation: str) -> None:
    refuse_copies(implementation, tokens * model.config.top_k_of(0), model.moe_layers()[0].experts_gate_up)


def _peers(call: Callable[..., Any]) -> dict[str, dict[str, Callable[..., Any]]]:
    names = {f"transformers {name}": name for name in TRANSFORMERS_EXPERTS}
    names["ours in transformers"] = "hunyuan_kernels"
    return {"transformers": {name: partial(call, implementation) for name, implementation in names.items()}}


# ---- a layer --------------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """The only layer of a model, as it is and after ``prepack``."""

    model: Decoder
    packed: Decoder | None


def _make_layer(tokens: int, config: Config, dtype: torch.dtype, packed: bool, seed: int) -> Arguments:
    model = make_model(replace(config, num_layers=1, vocabulary_size=8), dtype, seed)
    x = torch.randn(1, tokens, config.hidden_size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    rope = rope_of(config, torch.arange(tokens), dtype)
    layer = Layer(model, copy.deepcopy(model).prepack() if packed else None)
    return {"x": x, "positions": Positions(rope), "layer": layer}


@torch.inference_mode()
def _forward(model: Decoder, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    y, _, _, routing = model.layers[0](x, positions)
    return y, routing.expert_ids


def decoder_layer(x: Tensor, positions: Positions, layer: Layer) -> tuple[Tensor, Tensor]:
    """A layer of the model, attention and experts, over a text without a cache; and the experts that it chose."""
    return _forward(layer.model, x, positions)


def decoder_layer_packed(x: Tensor, positions: Positions, layer: Layer) -> tuple[Tensor, Tensor]:
    """The same on weights of ``prepack``."""
    assert layer.packed is not None
    return _forward(layer.packed, x, positions)


@torch.inference_mode()
def _their_layer(implementation: str, x: Tensor, positions: Positions, layer: Layer) -> Tensor:
    _refuse_copies(layer.model, x.shape[1], implementation)
    cos, sin = positions.rope
    theirs = theirs_of(layer.model, implementation).model.layers[0]
    out: Tensor = theirs(x, position_embeddings=(cos[None], sin[None]))
    return out


def _layer_in(
    dtype: torch.dtype, x: Tensor, layer: Layer, expert_ids: Tensor | None = None, **_: Any
) -> reference.LayerOutput:
    config = layer.model.config
    return reference.decoder_layer(
        x[0].to(dtype), _of_layer(layer.model, 0), config, top_k=config.top_k_of(0), expert_ids=expert_ids
    )


def _within(name: str, excess: Tensor, rounding: Tensor) -> Comparison:
    """``excess``, an error, against ``rounding``, that of plain PyTorch in the same dtype."""
    if not excess.numel():
        return Comparison(True, f"{name}: empty", 0.0, 0.0)
    ratios = (excess / (_AS_WRONG_AS * rounding)).nan_to_num(nan=float("inf"))
    ratios = torch.where(excess <= 0, 0.0, ratios)
    worst, largest = float(ratios.max()), float(excess.max())
    text = f"{name}: error {largest:.3g}, which is {worst:.3g} of {_AS_WRONG_AS:g} times that of plain PyTorch"
    return Comparison(worst <= 1.0, text, max(0.0, largest), worst)


def _compare_layer(arguments: Arguments, got: Any, want: reference.LayerOutput) -> list[Comparison]:
    """Tokens whose last choices are about equally good may go elsewhere: the output is compared for what was chosen."""
    y, ids = got
    if bool((ids.sort(1).values != want.expert_ids.sort(1).values).any()):
        want = _layer_in(torch.float64, expert_ids=ids, **arguments)
    plain = _layer_in(arguments["x"].dtype, expert_ids=ids, **arguments)
    logits = want.router_logits
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, True)
    passed_over = logits.masked_fill(chosen, float("-inf")).amax(1) - logits.masked_fill(~chosen, float("inf")).amin(1)
    errors = (y[0].double() - want.y).abs()
    return [
        _within("choice of experts", passed_over, (plain.router_logits.double() - logits).abs().amax()),
        _within("y", errors, (plain.y.double() - want.y).abs().amax(1, keepdim=True)),
    ]


def _first_tokens(arguments: Arguments, got: Any) -> tuple[Arguments, Any]:
    """No token sees one after it."""
    return {**arguments, "x": arguments["x"][:, :8]}, (got[0][:, :8], got[1][:8])


def _layer_work(arguments: Arguments) -> Work:
    """With each expert that the specification would use read once: all, where there are far more choices than those."""
    x, model = arguments["x"], arguments["layer"].model
    config, moe, tokens = model.config, model.moe_layers()[0], x.shape[1]
    assignments = tokens * config.top_k_of(0)
    one_expert = moe.experts_gate_up[0].numel() + moe.experts_down[0].numel()
    dense = sum(p.numel() for p in model.layers[0].parameters()) - moe.gate.shape[0] * one_expert
    scores = tokens * (tokens + 1) / 2 * config.num_heads * config.head_dim
    flops = 2.0 * (tokens * dense + assignments * one_expert) + 4.0 * scores
    read = dense + min(assignments, moe.gate.shape[0]) * one_expert
    return Work(flops, float(read * x.element_size() + 2 * x.nbytes), tokens)


# ---- generation -----------------------------------------------------------------------------------------------------


def _make_generation(
    config: Config, dtype: torch.dtype, lengths: Sequence[int], new_tokens: int, draft: int, seed: int
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(config.vocabulary_size, (n,), generator=generator).tolist() for n in lengths]
    arguments = {"model": make_model(config, dtype, seed), "prompts": prompts, "new_tokens": new_tokens}
    return {**arguments, "draft": draft} if draft else arguments


def _greedy(model: Decoder, prompts: list[list[int]], new_tokens: int, draft: int = 0) -> list[list[int]]:
    """The specification: the likeliest token after all before it, every time from the start."""
    weights, made = published(model), []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(new_tokens):
            text.append(int(reference.decoder(torch.tensor(text), weights, model.config)[-1].argmax()))
        made.append(text[len(prompt) :])
    return made


def _compare_generated(arguments: Arguments, got: Generated | Tensor, want: list[list[int]]) -> list[Comparison]:
    """Tokens that differ from the specification's: how much less likely than the likeliest are they, after their own
    text?"""
    model, comparisons = arguments["model"], []
    tokens = got.tokens if isinstance(got, Generated) else got.tolist()
    for row, (prompt, made, exact) in enumerate(zip(arguments["prompts"], tokens, want, strict=True)):
        name = f"text {row}"
        if made == exact:
            comparisons.append(Comparison(True, f"{name}: identical", 0.0, 0.0))
        elif len(made) != len(exact):
            message = f"{name}: {len(made)} tokens, expected {len(exact)}"
            comparisons.append(Comparison(False, message, float("inf"), float("inf")))
        else:
            text = torch.tensor([*prompt, *made[:-1]])
            logits, plain = (
                reference.decoder(text, published(model), model.config, dtype)[len(prompt) - 1 :].double()
                for dtype in (torch.float64, model.embed_tokens.dtype)
            )
            less = logits.amax(1) - logits.gather(1, torch.tensor(made).unsqueeze(1)).squeeze(1)
            comparisons.append(_within(name, less, (plain - logits).abs().amax()))
    return comparisons


def _generation_work(arguments: Arguments) -> Work:
    """Weights that a token passes are read once for each token that comes after the one before."""
    model, prompts, new = arguments["model"], arguments["prompts"], arguments["new_tokens"]
    tokens, active = sum(map(len, prompts)) + len(prompts) * (new - 1), model.config.num_active_parameters
    size = model.embed_tokens.element_size()
    return Work(2.0 * active * tokens, float(active * size * new), len(prompts) * new)


@torch.inference_mode()
def _their_generation(
    implementation: str, model: Decoder, prompts: list[list[int]], new_tokens: int, draft: int = 0
) -> Tensor:
    if len(set(map(len, prompts))) > 1 or (draft and len(prompts) > 1):
        raise NotImplementedError("transformers drafts for one prompt alone, and pads on the left")
    _refuse_copies(model, sum(map(len, prompts)), implementation)
    x, options = torch.tensor(prompts), {"prompt_lookup_num_tokens": draft} if draft else {}
    out: Tensor = theirs_of(model, implementation).generate(
        x, attention_mask=torch.ones_like(x), max_new_tokens=new_tokens, do_sample=False, **options
    )
    return out[:, x.shape[1] :]


# ---- cases ----------------------------------------------------------------------------------------------------------

_DTYPES = (torch.float32, torch.bfloat16)
_TINY = Config(
    vocabulary_size=40,
    hidden_size=32,
    num_layers=2,
    head_dim=8,
    intermediate_size=32,
    num_experts=8,
    top_k=3,
    overflow="drop",
    cla_share_factor=1,
    rope_alpha=50.0,
)
#: In the form of Hunyuan-Large.
_TINY_LARGE = replace(_TINY, top_k=1, overflow="recycle", cla_share_factor=2)

#: The small model in the form of Hunyuan-A13B, which transformers has: several experts, no shared keys and values.
SMALL = replace(preset("small"), top_k=4, overflow="drop", capacity_factor=None, cla_share_factor=1)
#: As many experts as fit a machine of 24 GiB, packed ones and the originals. Most of a vocabulary is never read.
_REAL = {
    "hunyuan-large": ("2 of 16 experts", replace(preset("hunyuan-large"), num_experts=2, vocabulary_size=4096)),
    "hunyuan-a13b": ("16 of 64 experts, k 8", replace(preset("hunyuan-a13b"), num_experts=16, vocabulary_size=4096)),
}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _layer_cases(packed: bool) -> list[Case]:
    return [
        Case(f"{label}, {_name(dtype)}", partial(_make_layer, tokens, config, dtype, packed))
        for label, tokens, config in (
            ("one token", 1, _TINY),
            ("k 3", 19, _TINY),
            ("k 1", 19, replace(_TINY, top_k=1, overflow="recycle")),
            ("one head of keys", 9, replace(_TINY, num_key_value_heads=1, head_dim=16, num_experts=33)),
        )
        for dtype in _DTYPES
    ]


def _layer_bench_cases(packed: bool, name: str | None) -> list[Case]:
    label, config = ("the small model's", SMALL) if name is None else _REAL[name]
    lengths: dict[str | None, tuple[int, ...]] = {None: (64, 1), "hunyuan-large": (1, 8), "hunyuan-a13b": (1, 8, 512)}
    return [
        Case(f"{label}, T {t}, bfloat16", partial(_make_layer, t, config, torch.bfloat16, packed))
        for t in lengths[name]
    ]


def _generation_cases(draft: int) -> list[Case]:
    return [
        Case(f"{label}, {_name(dtype)}", partial(_make_generation, config, dtype, lengths, 6, draft))
        for label, config, lengths in (
            ("k 3", _TINY, (9,)),
            ("k 3, two prompts", replace(_TINY, tie_embeddings=False), (5, 5)),
            ("k 1, shared keys and values, two lengths", _TINY_LARGE, (7, 3)),
        )
        for dtype in _DTYPES
    ]


def _generation_bench_cases(draft: int, name: str | None) -> list[Case]:
    if name is not None:
        label, config = _REAL[name]
        make = partial(_make_generation, replace(config, num_layers=2), torch.bfloat16, (32,), 8, draft)
        return [Case(f"2 layers, {label}, 32 + 8 tokens, bfloat16", make)]
    return [
        Case(
            f"the small model, batch {batch}, 32 + 32 tokens, {_name(dtype)}",
            partial(_make_generation, SMALL, dtype, (32,) * batch, 32, draft),
        )
        for dtype in _DTYPES
        for batch in ((1,) if draft else (1, 4))
    ]


SPECS = [
    *(
        OpSpec(
            name=name,
            stem="model",
            function=generate,
            reference=_greedy,
            compare=_compare_generated,
            cases=partial(_generation_cases, draft),
            bench_cases=partial(_generation_bench_cases, draft),
            work=_generation_work,
            peers=_peers(_their_generation),
            on_cuda=lambda arguments: False,
        )
        for name, draft in (("generate", 0), ("generate_drafted", 8))
    ),
    *(
        OpSpec(
            name=function.__name__,
            stem="model",
            function=function,
            reference=partial(_layer_in, torch.float64),
            compare=_compare_layer,
            cases=partial(_layer_cases, packed),
            bench_cases=partial(_layer_bench_cases, packed),
            work=_layer_work,
            peers=_peers(_their_layer),
            sample=_first_tokens,
            on_cuda=lambda arguments: False,
        )
        for function, packed in ((decoder_layer, False), (decoder_layer_packed, True))
    ),
]
