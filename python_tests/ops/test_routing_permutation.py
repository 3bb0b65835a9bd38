"""The permutation of the free slots: a permutation, the same everywhere, and uniform over seeds."""

import itertools
import math

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels.reference.routing import philox4x32, slot_permutation
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets

#: Chance of a uniform sample to exceed the limit of the chi-square tests below: about 1e-6 each, with fixed seeds.
SIGMAS = 5.0


def chi_square_limit(cells: int) -> float:
    """Wilson-Hilferty: the value that chi-square with cells - 1 degrees of freedom exceeds at SIGMAS."""
    k = cells - 1
    return k * (1 - 2 / (9 * k) + SIGMAS * math.sqrt(2 / (9 * k))) ** 3


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum().item() / counts.numel()
    return float(((counts.double() - expected) ** 2 / expected).sum())


def slots_of(free: int, dropped: int, seed: int) -> list[int]:
    """The experts of the dropped tokens when each of ``free`` experts has one free slot: pi(0), pi(1), ...

    Expert ``free`` takes one token of ``dropped + 1``; experts 0 to free - 1 have nothing and a capacity of 1.
    """
    logits = torch.zeros(dropped + 1, free + 1)
    logits[:, free] = 1.0
    routing = hk.route(logits, 1, capacity=1, seed=seed)
    return routing.expert_ids[1:, 0].tolist()


def seeds(count: int) -> list[int]:
    """Half of them consecutive, half any 64 bits."""
    generator = torch.Generator().manual_seed(7)
    wide = torch.randint(-(2**63), 2**63 - 1, (count // 2,), generator=generator)
    return [*range(count // 2), *wide.tolist()]


def test_philox_known_answers():
    """The vectors of the Random123 distribution (kat_vectors, philox4x32 10)."""
    assert philox4x32((0, 0, 0, 0), 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert philox4x32((ones, ones, ones, ones), 2**64 - 1) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox4x32(pi, 0x299F31D0A4093822) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 255, 257, 1000])
def test_is_a_permutation(size):
    for seed in (0, 1, -1, 2**63 - 1, 123456789012345):
        assert sorted(slot_permutation(size, seed)) == list(range(size))


@pytest.mark.parametrize("isa", supported_instruction_sets())
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 64, 100, 400])
def test_kernels_and_reference_agree(size, isa):
    with instruction_set(isa):
        for seed in (0, 1, -1, 2**63 - 1, -(2**63), 987654321):
            assert slots_of(size, size, seed) == slot_permutation(size, seed)


def test_kernels_and_reference_agree_on_a_large_pool():
    logits = torch.zeros(5000, 4)
    logits[:, 0] = 1.0
    routing = hk.route(logits, 1, capacity=4096, seed=3)
    owners = [1 + slot // 4096 for slot in slot_permutation(3 * 4096, 3, 5000 - 4096)]
    assert routing.expert_ids[4096:, 0].tolist() == owners


@pytest.mark.parametrize("free", [2, 3, 4, 5])
def test_every_permutation_of_few_slots_is_equally_likely(free):
    index = {p: i for i, p in enumerate(itertools.permutations(range(free)))}
    counts = torch.zeros(len(index), dtype=torch.int64)
    for seed in seeds(30_000):
        counts[index[tuple(slots_of(free, free, seed))]] += 1
    assert chi_square(counts) < chi_square_limit(len(index))


def pair_counts(permutations: torch.Tensor, first: int, second: int) -> torch.Tensor:
    """How often (pi(first), pi(second)) took each of the size * (size - 1) values."""
    size = permutations.shape[1]
    a, b = permutations[:, first], permutations[:, second]
    code = a * (size - 1) + torch.where(b > a, b - 1, b)
    return torch.bincount(code, minlength=size * (size - 1))


@pytest.mark.parametrize("size", [6, 8, 12, 16, 17, 20, 24, 32, 33])
def test_pairs_of_many_slots_are_jointly_uniform(size):
    permutations = torch.tensor([slot_permutation(size, seed) for seed in seeds(6_000)])
    limit = chi_square_limit(size * (size - 1))
    for first, second in [(0, 1), (0, size - 1), (size // 2, size // 2 + 1), (1, size // 2)]:
        assert chi_square(pair_counts(permutations, first, second)) < limit


@pytest.mark.parametrize("size", [6, 17, 32])
def test_a_rotation_would_fail(size):
    """A random rotation has uniform marginals, which a test of single tokens would accept; the pairs tell."""
    shifts = torch.randint(0, size, (6_000, 1), generator=torch.Generator().manual_seed(0))
    rotations = (torch.arange(size) + shifts) % size
    marginal = torch.bincount(rotations[:, 0], minlength=size)
    assert chi_square(marginal) < chi_square_limit(size)
    assert chi_square(pair_counts(rotations, 0, 1)) > 10 * chi_square_limit(size * (size - 1))


@pytest.mark.parametrize("size", [64, 200])
def test_experts_of_pairs_are_jointly_uniform(size):
    """Larger pools, through the op: both of two dropped tokens, by the eighth of the pool that they fall into."""
    counts = torch.zeros(64, dtype=torch.int64)
    per_expert = size // 8
    logits = torch.zeros(per_expert + 2, 9)
    logits[:, 8] = 1.0
    for seed in seeds(20_000):
        ids = hk.route(logits, 1, capacity=per_expert, seed=seed).expert_ids[per_expert:, 0]
        counts[int(ids[0]) * 8 + int(ids[1])] += 1
    # Two tokens share an eighth a little less often than two independent ones.
    same = per_expert / size * (per_expert - 1) / (size - 1)
    expected = torch.full((8, 8), (1 - 8 * same) / 56).fill_diagonal_(same).flatten() * counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < chi_square_limit(64)
