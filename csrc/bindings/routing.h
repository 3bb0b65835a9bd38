// `route`, for the ops that begin with it.
#pragma once
#include "bindings/torch_glue.h"

namespace hunyuan_kernels {

// weights, expert_ids, rows, token_ids, expert_offsets, demand, num_recycled, num_dropped
using RoutingTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

RoutingTuple route(Tensor logits, int64_t top_k, std::optional<int64_t> capacity, bool recycle, bool renormalize,
                   Tensor seed, std::optional<Tensor> num_tokens);

}  // namespace hunyuan_kernels
