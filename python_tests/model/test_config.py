"""Sizes: what they count, and which do not fit together."""

import pytest

from hunyuan_kernels.model import Config, Decoder

SMALL = {"vocabulary_size": 19, "hidden_size": 24, "num_heads": 4, "head_dim": 6, "intermediate_size": 10}


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("share", [1, 2, 3])
def test_number_of_parameters(layers, share):
    config = Config(**SMALL, num_layers=layers, cla_share_factor=share, num_experts=5)
    assert config.num_parameters == sum(p.numel() for p in Decoder(config).parameters())


def test_number_of_parameters_of_the_published_models():
    large = Config(129024, 6400, 64, 80, 8, 80, 18304, 16, 1)
    assert round(large.num_parameters / 1e9, 1) == 388.7
    assert round(large.num_active_parameters / 1e9, 1) == 51.3
    a13b = Config(128167, 4096, 32, 32, 8, 128, 3072, 64, 8, cla_share_factor=1)
    assert round(a13b.num_parameters / 1e9, 2) == 80.39
    assert round(a13b.num_active_parameters / 1e9, 2) == 12.75


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0; at least 1"),
        ({"num_heads": 4, "num_key_value_heads": 3}, "num_heads is 4; a multiple of num_key_value_heads, 3,"),
        ({"head_dim": 7}, "head_dim is 7; an even number from 4 on"),
        ({"head_dim": 2}, "head_dim is 2; an even number from 4 on"),
        ({"top_k": 17}, "top_k is 17; at most num_experts, 16,"),
        ({"capacity_factor": 0.0}, "capacity_factor is 0.0; a positive number or None"),
        ({"capacity_factor": float("nan")}, "capacity_factor is nan; a positive number or None"),
        ({"overflow": "wait"}, "overflow is 'wait'; allowed: 'recycle', 'drop'"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=f"Config: {message}"):
        Config(**sizes)
