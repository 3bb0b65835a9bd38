// out = silu(gate) * up over rows, and its gradient: bound by memory, each element read and written once. Tasks are
// runs of rows.
#include "cpu/swiglu.h"

#include "cpu/expert_rows.h"
#include "cpu/isa/microkernels.h"

namespace hunyuan_kernels::cpu {

void swiglu(const Rows& x, int64_t rows_used, const Rows& out, const ThreadPool& pool) {
  const SwigluKernels& kernels = microkernels().swiglu;
  parallel_ranges(pool, rows_used, rows_of_grain(out.columns), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      kernels.forward(row_of(x, row), row_of(x, row, out.columns), x.dtype, out.columns, row_of(out, row));
  });
  zero_rows(pool, out, rows_used);
}

void swiglu_backward(const Rows& grad_out, const Rows& x, int64_t rows_used, const Rows& grad_x,
                     const ThreadPool& pool) {
  const SwigluKernels& kernels = microkernels().swiglu;
  const int64_t columns = grad_out.columns;
  parallel_ranges(pool, rows_used, rows_of_grain(columns), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      kernels.backward(row_of(grad_out, row), row_of(x, row), row_of(x, row, columns), x.dtype, columns,
                       row_of(grad_x, row), row_of(grad_x, row, columns));
  });
  zero_rows(pool, grad_x, rows_used);
}

}  // namespace hunyuan_kernels::cpu
