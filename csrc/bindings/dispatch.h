// What other ops use of the stem `dispatch`.
#pragma once
#include "bindings/torch_glue.h"

namespace hunyuan_kernels {

// token_ids [S] of a Routing, contiguous, on the device of `like`, which is the argument `other`.
Tensor checked_token_ids(const char* op, const Tensor& token_ids, const char* other, const Tensor& like);

// On the CPU: token_ids and expert_offsets [E + 1] of a Routing, checked against x [T, H]; the offsets.
std::vector<int64_t> checked_rows(const char* op, const Tensor& x, const Tensor& token_ids,
                                  const Tensor& expert_offsets, int64_t experts);

Tensor combine(Tensor y, Tensor rows, Tensor weights, Tensor token_ids, std::optional<Tensor> shared,
               std::optional<Tensor> residual);

}  // namespace hunyuan_kernels
