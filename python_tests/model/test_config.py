"""Sizes: what they count, and which do not fit together."""

import pytest
import torch

from hunyuan_kernels.model import Config, Decoder, preset
from hunyuan_kernels.model.rope import rope_tables

SMALL = {"vocabulary_size": 19, "hidden_size": 24, "num_heads": 4, "head_dim": 6, "intermediate_size": 10}


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("share", [1, 2, 3])
def test_number_of_parameters(layers, share):
    config = Config(**SMALL, num_layers=layers, cla_share_factor=share, num_experts=5)
    assert config.num_parameters == sum(p.numel() for p in Decoder(config).parameters())


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("hunyuan-large", 388.7, 51.3), ("hunyuan-a13b", 80.4, 12.7)],
)
def test_number_of_parameters_of_the_published_models(name, total, active):
    config = preset(name)
    assert round(config.num_parameters / 1e9, 1) == total
    assert config.num_active_parameters / 1e9 == pytest.approx(active, abs=0.06)
    with torch.device("meta"):
        model = Decoder(config)
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters


def test_unknown_preset():
    with pytest.raises(ValueError, match="preset: name is 'hunyuan'; allowed: 'hunyuan-large', 'hunyuan-large-pre"):
        preset("hunyuan")


def test_numbers_of_each_layer():
    config = Config(**SMALL, num_layers=3, num_experts=(4, 2, 6), top_k=(2, 1, 3), tie_embeddings=False)
    model = Decoder(config)
    assert [m.gate.shape[0] for m in model.moe_layers()] == [4, 2, 6]
    assert [m.top_k for m in model.moe_layers()] == [2, 1, 3]
    assert config.num_parameters == sum(p.numel() for p in model.parameters())
    expert = 3 * 24 * 10
    assert config.num_parameters - config.num_active_parameters == (2 + 1 + 3) * expert


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0; an integer from 1 to 2147483647 is required"),
        ({"hidden_size": 2**31}, "hidden_size is 2147483648; an integer from 1 to 2147483647 is required"),
        ({"rope_theta": 10**400}, "rope_theta is 10+; a positive number, 1e-100 to 1e100, is required"),
        ({"rope_alpha": 1e308}, r"rope_alpha is 1e\+308; a positive number, 1e-100 to 1e100, is required"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon is nan; a positive number"),
        ({"tie_embeddings": "no"}, "tie_embeddings is 'no'; True or False"),
        ({"num_heads": 4, "num_key_value_heads": 3}, "num_heads is 4; a multiple of num_key_value_heads, 3,"),
        ({"head_dim": 7}, "head_dim is 7; an even number from 4 on"),
        ({"head_dim": 2}, "head_dim is 2; an even number from 4 on"),
        ({"top_k": 17}, "top_k is 17; at most num_experts, 16,"),
        ({"num_experts": (4, 4)}, "num_experts has 2 numbers; one for each of 4 layers"),
        ({"top_k": (1, 0, 1, 1)}, r"top_k is \(1, 0, 1, 1\); an integer from 1 to"),
        ({"num_experts": (4, 4, 2, 4), "top_k": 3}, "top_k is 3; at most num_experts, "),
        ({"hidden_dropout": 1.0}, "hidden_dropout is 1.0; a probability below 1"),
        ({"attention_dropout": float("nan")}, "attention_dropout is nan; a probability below 1"),
        ({"capacity_factor": 0.0}, "capacity_factor is 0.0; a positive number up to 2147483647 or None"),
        ({"capacity_factor": float("nan")}, "capacity_factor is nan; a positive number"),
        ({"capacity_factor": float("inf")}, "capacity_factor is inf; a positive number"),
        ({"overflow": "wait"}, "overflow is 'wait'; allowed: 'recycle', 'drop'"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=f"Config: {message}"):
        Config(**sizes)


@pytest.mark.parametrize("value", [1e-100, 1e100])
@pytest.mark.parametrize("head_dim", [4, 64])
def test_the_outermost_rotary_bases_are_finite(value, head_dim):
    tables = rope_tables(torch.arange(9), head_dim, theta=value, alpha=value)
    assert all(table.isfinite().all() for table in tables)


def test_no_expert_takes_more_than_all_tokens():
    model = Decoder(Config(**SMALL, num_layers=1, capacity_factor=2.0**31 - 1)).train()
    assert model.moe_layers()[0].capacity(12) == 12
    assert model(torch.arange(12)[None]).logits.isfinite().all()
