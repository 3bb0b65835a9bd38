// What host/routing.cpp and kernels/routing_sm90.cu agree on.
#pragma once
#include <cstdint>

namespace hunyuan_kernels::kernels {

struct RoutingArguments {
  // The choices come from logits, or from ids and weights of another router.
  const void* logits;     // [tokens, experts]
  const void* given_ids;  // [tokens, top_k] int32 or int64
  const float* given_weights;
  const int64_t* seed;        // one element; null: no recycling
  const int32_t* num_tokens;  // one element, or null: all tokens count
  // The result. expert_ids and weights are written by the first phase and corrected by the second.
  int32_t* expert_ids;      // [tokens, top_k]
  float* weights;           // [tokens, top_k]
  int32_t* rows;            // [tokens, top_k]
  int32_t* token_ids;       // [rows_bound]
  int32_t* expert_offsets;  // [experts + 1]
  int32_t* demand;          // [experts]
  int32_t *num_recycled, *num_dropped;
  // Workspace.
  uint32_t* counts;   // [chunks, top_k, experts]; null in a single cluster, which keeps them in shared memory
  float* statistics;  // [tokens, 2]: maximum and sum of the softmax, when recycling
  int64_t logits_stride;
  int64_t rows_bound;
  int32_t tokens, top_k, experts, chunks;
  uint32_t limit;  // capacity, or 2^32 - 1
  bool bfloat16_logits;
  bool renormalize;
  bool vectors;  // rows of logits are whole vectors of 4 experts, each aligned to its size
};

struct RouteBackwardArguments {
  const void* logits;  // [tokens, experts]
  const int32_t* num_tokens;
  const int32_t* expert_ids;  // [tokens, top_k]
  const float* weights;       // [tokens, top_k]
  const float* grad_weights;  // [tokens, top_k]
  void* grad_logits;          // [tokens, experts], contiguous
  int64_t logits_stride;
  int32_t tokens, top_k, experts;
  bool renormalize;
  bool vectors;  // as above, for both logits and grad_logits
};

struct LoadBalancingLossArguments {
  const void* logits;         // [tokens, experts]
  const int32_t* num_tokens;  // one element, or null: all tokens count
  const int32_t* demand;      // [experts]
  double* partial_sums;       // [blocks], workspace; the gradient has none
  float* loss;                // one element
  const float* grad_loss;     // one element; of the gradient, as grad_logits
  void* grad_logits;          // [tokens, experts], contiguous
  int64_t logits_stride;
  int32_t tokens, experts, blocks;
  bool vectors;  // as above, for both logits and grad_logits
};

constexpr int kRoutingChunk = 512;  // tokens of a block, and its threads
constexpr int kRoutingCluster = 8;  // blocks of a cluster, at most
constexpr int kRoutingMaxExperts = 512;
constexpr int kRoutingBackwardThreads = 256;
constexpr int kLossThreads = 256;  // of the loss and its gradient
constexpr int kLossPasses = 4;     // of a block over as many tokens as its lanes hold at once

// Dynamic shared memory of the routing kernels: see Shared in routing_sm90.cu.
constexpr int64_t routing_shared_bytes(int64_t top_k, int64_t experts) {
  const int64_t warps = kRoutingChunk / 32, by_warp = top_k > warps ? top_k : warps;
  return 4 * ((2 * top_k + by_warp + 6) * experts + 2);
}

}  // namespace hunyuan_kernels::kernels
