// Routing on the CPU: see cpu/routing.cpp.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"
#include "cpu/isa/routing.h"

namespace hunyuan_kernels::cpu {

constexpr int64_t kNoCapacity = -1;

struct RoutingSizes {
  int64_t tokens, top_k, experts;
  int64_t rows;          // S, a bound the caller knows
  int64_t valid_tokens;  // tokens past these are padding
  int64_t capacity;      // or kNoCapacity

  int64_t assignments() const { return tokens * top_k; }
};

// The tensors of a Routing; expert_ids and weights are inputs of assign_rows and changed by recycling and padding.
struct RoutingTensors {
  int32_t* expert_ids;      // [tokens, top_k]; not in [0, experts): no expert
  float* weights;           // [tokens, top_k]
  int32_t* rows;            // [tokens, top_k]
  int32_t* token_ids;       // [rows]
  int32_t* expert_offsets;  // [experts + 1]
  int32_t* demand;          // [experts]
  int32_t* num_recycled;    // scalar
  int32_t* num_dropped;     // scalar
};

// What recycling needs beside the assignments: the router's logits and each token's softmax statistics.
struct RecycleInputs {
  LogitRows logits;
  const float* maxima;  // [tokens]
  const float* sums;    // [tokens]
  uint64_t seed;
};

// expert_ids and weights of the first valid_tokens tokens from the logits; maxima and sums may be null.
void choose_experts(const LogitRows& logits, int64_t top_k, bool renormalize, int32_t* expert_ids, float* weights,
                    float* maxima, float* sums, const ThreadPool& pool);

// Rows, token ids, offsets and counts from expert ids; overflow is dropped, or recycled when `recycle` is given.
void assign_rows(const RoutingSizes& sizes, const RoutingTensors& tensors, const RecycleInputs* recycle,
                 const ThreadPool& pool);

struct RouteBackwardArguments {
  LogitRows logits;
  int64_t top_k, valid_tokens;
  bool renormalize;
  const int32_t* expert_ids;  // those of the result
  const float* weights;
  const float* grad_weights;
  void* grad_logits;  // [tokens, experts], contiguous
};
void route_backward(const RouteBackwardArguments& arguments, const ThreadPool& pool);

// experts * sum_e mean_t(softmax(logits_t)_e) * demand_e / tokens over the first valid_tokens tokens.
float load_balancing_loss(const LogitRows& logits, int64_t valid_tokens, const int32_t* demand, const ThreadPool& pool);
void load_balancing_loss_backward(const LogitRows& logits, int64_t valid_tokens, const int32_t* demand, float grad_loss,
                                  void* grad_logits, const ThreadPool& pool);

}  // namespace hunyuan_kernels::cpu
