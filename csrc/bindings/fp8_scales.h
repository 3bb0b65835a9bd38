// Scales of e4m3 operands: which shapes are allowed, and how they lie. docs/numerics.md has the table.
#pragma once
#include <optional>

#include "bindings/torch_glue.h"
#include "cpu/fp8_gemm.h"

namespace hunyuan_kernels {

// fp32, on the device of what it scales.
void check_scale(const char* op, const char* argument, const Tensor& scale, const char* scaled_name,
                 const Tensor& scaled);

// Per tensor [] or [1], per row [rows], or blocks [rows, ceil(K / 128)]; absent for bf16 and fp32 activations.
cpu::ActivationScale activation_scale(const char* op, const std::optional<Tensor>& given, const Tensor& a);

// What weights [E, rows, K], or [rows, K] of one matrix, stand for; the tensor may be packed.
struct ScaledWeights {
  const char* name;
  const Tensor& tensor;
  bool grouped;
  int64_t experts, rows, columns;
};

// With `halves`, rows = 2I, gate and up.
cpu::WeightScale weight_scale(const char* op, const char* name, const Tensor& scale, const ScaledWeights& weights,
                              bool halves);

}  // namespace hunyuan_kernels
