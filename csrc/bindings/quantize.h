// quantize_fp8 for other ops, on every device.
#pragma once
#include <optional>

#include "bindings/torch_glue.h"

namespace hunyuan_kernels {

// q of x [S, K] in fp32 or bf16: under `scale`, one element, or without one in blocks of 1 x 128, whose scales are put
// there.
Tensor quantize_activations(const char* op, const Tensor& x, std::optional<Tensor>& scale);

}  // namespace hunyuan_kernels
