// NF4 weights as an argument: what quantize_nf4 returns.
#pragma once
#include "bindings/torch_glue.h"
#include "cpu/nf4_gemm.h"

namespace hunyuan_kernels {

// Weights [E, N, K], or with grouped = false [N, K] as one expert.
struct Nf4Argument {
  Nf4Argument(const char* op, const char* blocks_name, const Tensor& blocks, const char* scale_name,
              const Tensor& scale_given, bool grouped);
  cpu::ExpertWeights b;
  Tensor scale;
};

}  // namespace hunyuan_kernels
