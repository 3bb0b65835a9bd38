// Integer arithmetic used by host code and microkernels. `static` on purpose: files compiled for a higher instruction
// set must not provide the one copy of an inline function that the linker keeps.
#pragma once
#include <cstdint>

namespace hunyuan_kernels {

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static constexpr int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace hunyuan_kernels
