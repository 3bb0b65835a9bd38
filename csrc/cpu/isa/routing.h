// Microkernels of the stem `routing`: see routing.inl.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/permutation.h"

namespace hunyuan_kernels::cpu {

// Logits of some tokens: row t at data + t * stride (elements of dtype float32 or bfloat16).
struct LogitRows {
  const void* data;
  DType dtype;
  int64_t stride, tokens, experts;
};

constexpr int64_t kRoutingLanes = 16;  // at least the lanes of every instruction set

struct RoutingKernels {
  // The top_k largest logits of each token, larger first, ties to the lower expert, NaN as minus infinity; and the
  // softmax weights of those. ids and weights: [tokens, top_k]. maxima and sums, unless null: per token, what p_e =
  // exp(logit_e - maximum) / sum needs. scratch: kRoutingLanes floats for each expert, experts rounded up to
  // kRoutingLanes.
  void (*choose)(const LogitRows& logits, int64_t top_k, bool renormalize, float* scratch, int32_t* ids, float* weights,
                 float* maxima, float* sums);
  // x[i] = exp(x[i])
  void (*exponentials)(float* x, int64_t n);
  // out[i] = the permutation at begin + i
  void (*permute)(const SlotPermutation& permutation, int64_t begin, int64_t count, uint32_t* out);
  // The gradient of one token's logits from that of its weights. scratch: experts floats, rounded up to kRoutingLanes.
  void (*weights_backward)(const LogitRows& logits, int64_t token, int64_t top_k, bool renormalize, const int32_t* ids,
                           const float* weights, const float* grad_weights, float* scratch, void* grad_logits);
  // out[t] = sum_e softmax(logits_t)_e * fractions_e. scratch as in choose.
  void (*balance)(const LogitRows& logits, const float* fractions, float* scratch, float* out);
  // grad_logits[t, e] = factor * p_e * (fractions_e - out[t]), contiguous: factor times its gradient.
  void (*balance_backward)(const LogitRows& logits, const float* fractions, float factor, float* scratch,
                           void* grad_logits);
};

}  // namespace hunyuan_kernels::cpu
