#include "cpu/moe.h"

#include <vector>

#include "common/integer_math.h"
#include "cpu/expert_rows.h"

namespace hunyuan_kernels::cpu {
namespace {

// Some experts with all their rows, or some rows of one expert.
struct Batch {
  int64_t expert, experts, row, rows;
};

std::vector<Batch> batches_of(const ExpertOffsets& offsets, const SwigluExperts& experts, DType dtype) {
  const int64_t row_bytes = maximum(1, experts.intermediate() * element_size(dtype));
  const int64_t limit = maximum(kGemmBlockRows, kHiddenBytes / row_bytes);
  std::vector<Batch> batches;
  for (int64_t e = 0; e < experts.gate_up.experts; ++e) {
    const int64_t rows = offsets[e + 1] - offsets[e];
    if (!batches.empty() && batches.back().rows + rows <= limit) {
      batches.back().experts += 1;
      batches.back().rows += rows;
      continue;
    }
    // Parts of one expert are about as large as each other: none is so small that it is multiplied in another way.
    const int64_t parts = maximum(1, ceil_div(rows, limit));
    for (int64_t part = 0, row = offsets[e]; part < parts; ++part) {
      const int64_t some = rows / parts + (part < rows % parts);
      batches.push_back({e, 1, row, some});
      row += some;
    }
  }
  return batches;
}

ExpertWeights some_of(const ExpertWeights& weights, const Batch& batch) {
  ExpertWeights some = weights;
  some.data = address(weights.data, weights.dtype, batch.expert * weights.expert_stride);
  some.experts = batch.experts;
  return some;
}

WeightScale some_of(const WeightScale& scale, const Batch& batch) {
  WeightScale some = scale;
  if (scale.data) some.data += batch.expert * scale.expert_stride;
  return some;
}

Rows some_of(const Rows& matrix, const Batch& batch) {
  Rows some = matrix;
  some.rows = batch.rows;
  if (matrix.ids)
    some.ids += batch.row;
  else
    some.data = row_of(matrix, batch.row);
  return some;
}

ExpertOffsets some_of(const ExpertOffsets& offsets, const Batch& batch) {
  ExpertOffsets some = {0};
  for (int64_t e = batch.expert + 1; e < batch.expert + batch.experts; ++e) some.push_back(offsets[e] - batch.row);
  some.push_back(batch.rows);
  return some;
}

}  // namespace

int64_t hidden_rows(const ExpertOffsets& offsets, const SwigluExperts& experts, DType dtype) {
  int64_t rows = 0;
  for (const Batch& batch : batches_of(offsets, experts, dtype)) rows = maximum(rows, batch.rows);
  return rows;
}

void expert_mlp(const Microkernels& microkernels, const ThreadPool& pool, const Rows& x, const ExpertOffsets& offsets,
                const SwigluExperts& experts, const Rows& hidden, const Rows& y) {
  for (const Batch& batch : batches_of(offsets, experts, hidden.dtype)) {
    const ExpertWeights gate_up = some_of(experts.gate_up, batch), down = some_of(experts.down, batch);
    const ExpertOffsets rows = some_of(offsets, batch);
    const Rows in = some_of(x, batch), between = some_of(hidden, {0, 0, 0, batch.rows}), out = some_of(y, batch);
    if (!experts.scaled) {
      grouped_swiglu(microkernels, pool, in, gate_up, rows, between, nullptr);
      grouped_gemm(microkernels, pool, between, down, rows, out);
    } else {
      grouped_swiglu_fp8(microkernels, pool, in, gate_up, rows, {}, some_of(experts.gate_up_scale, batch), between);
      grouped_gemm_fp8(microkernels, pool, between, down, rows, {}, some_of(experts.down_scale, batch), out);
    }
  }
}

}  // namespace hunyuan_kernels::cpu
