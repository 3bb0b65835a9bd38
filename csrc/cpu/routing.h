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

// The tensors of a Routing.
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

struct RouterInputs {
  LogitRows logits;
  bool renormalize;
  // Room for each token's softmax statistics: overflow is recycled. Null: it is dropped.
  float* maxima;  // [valid_tokens]
  float* sums;    // [valid_tokens]
  uint64_t seed;
};

// Everything from the router's logits, or without them (null) from expert_ids and weights. Those of padding tokens are
// the caller's.
void assign_rows(const RoutingSizes& sizes, const RoutingTensors& tensors, const RouterInputs* router,
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
