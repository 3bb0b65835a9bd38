// SwiGLU over rows on the CPU: see cpu/swiglu.cpp.
#pragma once
#include <cstdint>

#include "common/parallel.h"
#include "cpu/grouped_gemm.h"

namespace hunyuan_kernels::cpu {

// out[r] = silu(gate) * up with x[r] = gate, up, for r < rows_used; zeros for the rest, whose x is not read.
void swiglu(const Rows& x, int64_t rows_used, const Rows& out, const ThreadPool& pool);

// Its gradient with respect to x.
void swiglu_backward(const Rows& grad_out, const Rows& x, int64_t rows_used, const Rows& grad_x,
                     const ThreadPool& pool);

}  // namespace hunyuan_kernels::cpu
