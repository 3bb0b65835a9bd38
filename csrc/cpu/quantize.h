// quantize_fp8 on the CPU: see cpu/quantize.cpp.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"

namespace hunyuan_kernels::cpu {

enum class QuantizeRecipe { tensor, row, block_1x128, block_128x128 };

}  // namespace hunyuan_kernels::cpu
