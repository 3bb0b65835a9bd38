// The SwiGLU experts of a mixture-of-experts layer on the CPU, from tokens to the rows of `combine`:
//
//   hidden[r] = silu(gate_e x[ids[r]]) * (up_e x[ids[r]])        y[r] = down_e hidden[r]        for the rows r of
//   expert e
//
// Tokens are gathered while the first GEMM packs its rows (cpu/gemm.h): no copy of them in expert order is written.
// Experts are done in batches whose rows of `hidden` take at most kHiddenBytes: they stay in the last level cache until
// the second GEMM has read them, and `hidden` is as small as that. The sums are those of grouped_swiglu and
// grouped_gemm on dispatched rows, bit for bit.
#pragma once
#include <cstdint>

#include "cpu/fp8_gemm.h"

namespace hunyuan_kernels::cpu {

constexpr int64_t kHiddenBytes = int64_t{16} << 20;

// gate_up [E, 2I, H] and down [E, H, I]; `scaled`: e4m3 or NF4, with scales.
struct SwigluExperts {
  ExpertWeights gate_up, down;
  bool scaled = false;
  WeightScale gate_up_scale, down_scale;

  int64_t intermediate() const { return down.columns; }
};

// Rows of `hidden` that expert_mlp needs for elements of this type.
int64_t hidden_rows(const ExpertOffsets& offsets, const SwigluExperts& experts, DType dtype);

// x: tokens, or rows in expert order if it has no ids. Rows of y past the last offset are not written.
void expert_mlp(const Microkernels& microkernels, const ThreadPool& pool, const Rows& x, const ExpertOffsets& offsets,
                const SwigluExperts& experts, const Rows& hidden, const Rows& y);

}  // namespace hunyuan_kernels::cpu
