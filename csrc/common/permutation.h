// A pseudo-random permutation of 0 .. size - 1, keyed by a seed: which free slot the i-th dropped token gets.
//
// An alternating Feistel network on n = max(2, ceil(log2 size)) bits, with cycle walking: results at or past `size` are
// permuted again until one falls below, which keeps the map a permutation. The upper n / 2 bits (`left`) and the others
// (`right`) take turns: left ^= f(right), right ^= f(left). f mixes a half with the round's key, a word of
// Philox4x32-10. No sort, no memory: any i can be computed by itself, alike on CPU, GPU and in the reference.
//
// Rounds: with ideal round functions on 2 bits the probability of a permutation of 4 differs from 1/24 by a share of
// 2^-(rounds - 2) at most (computed exactly), so small sizes take 24 rounds. The halves of larger sizes have more bits,
// and 8 rounds make pairs uniform (python_tests/ops/test_routing_permutation.py).
#pragma once
#include <cstdint>

#include "common/philox.h"

namespace hunyuan_kernels {

struct SlotPermutation {
  uint32_t size;
  int left_bits, right_bits, rounds;  // rounds is even
  uint32_t keys[24];
};

static constexpr SlotPermutation make_slot_permutation(uint32_t size, uint64_t seed) {
  SlotPermutation p{};
  p.size = size;
  int bits = 2;
  while (bits < 32 && (uint64_t{1} << bits) < size) ++bits;
  p.left_bits = bits / 2;
  p.right_bits = bits - p.left_bits;
  p.rounds = size <= 16 ? 24 : 8;
  for (int round = 0; round < p.rounds; round += 4) {
    const PhiloxWords words = philox4x32({{static_cast<uint32_t>(round / 4), 0, 0, 0x726f7574u}}, seed);  // "rout"
    for (int i = 0; i < 4; ++i) p.keys[round + i] = words.word[i];
  }
  return p;
}

// The round function: the upper `bits` bits of a 32-bit finalizer. Word is uint32_t or a vector of it.
template <typename Word>
static constexpr inline __attribute__((always_inline)) Word mix_half(Word half, uint32_t key, int bits) {
  Word z = (half + key) * 0x9E3779B1u;
  z ^= z >> 15;
  z *= 0x85EBCA77u;
  z ^= z >> 13;
  z *= 0xC2B2AE3Du;
  z ^= z >> 16;
  return z >> (32 - bits);
}

// One pass through the network: a permutation of all numbers of left_bits + right_bits bits.
template <typename Word>
static constexpr inline __attribute__((always_inline)) Word permute_bits(const SlotPermutation& p, Word x) {
  Word left = x >> p.right_bits, right = x & ((1u << p.right_bits) - 1u);
  for (int round = 0; round < p.rounds; round += 2) {
    left ^= mix_half(right, p.keys[round], p.left_bits);
    right ^= mix_half(left, p.keys[round + 1], p.right_bits);
  }
  return (left << p.right_bits) | right;
}

// Where slot i goes: passes until the result lies within `size`.
static constexpr uint32_t permuted_slot(const SlotPermutation& p, uint32_t i) {
  do i = permute_bits(p, i);
  while (i >= p.size);
  return i;
}

}  // namespace hunyuan_kernels
