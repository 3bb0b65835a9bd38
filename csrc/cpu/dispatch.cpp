// The two row movements of a mixture-of-experts layer.
//
//   dispatch   out[r] = x[token_ids[r]]                                   rows of one expert become neighbours
//   combine    out[t] = sum_j weights[t, j] * y[rows[t, j]] + shared[t] + residual[t]
//
// Both are bound by memory: tasks are runs of output rows, each of which is written once; no atomics, so results do not
// depend on the number of threads.
#include "cpu/dispatch.h"

#include <cstring>
#include <vector>

#include "common/integer_math.h"
#include "cpu/isa/microkernels.h"
#include "cpu/quantize.h"

namespace hunyuan_kernels::cpu {
namespace {

// A run of rows of the result: a share for each thread while that fits its caches, where it finds what it wrote in the
// last call; of large results a huge page, which two threads should not map at the same time.
constexpr int64_t kLeastBytes = 1 << 16, kMostBytes = 1 << 21;

// Results from this size on are written past the caches: they leave no room there for what they are made of.
constexpr int64_t kPastCaches = 1 << 24;

int64_t rows_per_task(int64_t rows, int64_t row_bytes, const ThreadPool& pool) {
  const int64_t share = ceil_div(rows, pool.size()), row = maximum(1, row_bytes);
  return maximum(1, minimum(maximum(share, ceil_div(kLeastBytes, row)), ceil_div(kMostBytes, row)));
}

}  // namespace

void dispatch(const DispatchArguments& a, const ThreadPool& pool) {
  const DispatchKernels& kernels = microkernels().dispatch;
  const bool past_caches = a.rows * a.row_bytes >= kPastCaches;
  parallel_ranges(pool, a.rows, rows_per_task(a.rows, a.row_bytes, pool), [&](int64_t begin, int64_t end, int) {
    char* out = static_cast<char*>(a.out);
    const int64_t used = minimum(maximum(a.rows_used, begin), end);
    kernels.gather_rows(a.x, a.x_stride_bytes, a.token_ids + begin, used - begin, a.row_bytes,
                        out + begin * a.row_bytes, past_caches);
    std::memset(out + used * a.row_bytes, 0, (end - used) * a.row_bytes);
  });
}

void dispatch_fp8(const DispatchFp8Arguments& a, const ThreadPool& pool) {
  const QuantizeKernels& kernels = microkernels().quantize;
  const int64_t bytes = element_size(a.dtype), blocks = ceil_div(a.hidden, kScaleBlock);
  parallel_ranges(pool, a.rows, rows_per_task(a.rows, a.hidden * bytes, pool), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      float8_e4m3fn* q = a.q + r * a.hidden;
      if (r >= a.rows_used) {
        std::memset(q, 0, a.hidden);
        for (int64_t block = 0; !a.given_scale && block < blocks; ++block)
          a.scale[block * a.scale_block_stride + r] = 1.0f;
        continue;
      }
      const char* x = static_cast<const char*>(a.x.row(a.token_ids[r], bytes));
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t column = block * kScaleBlock, columns = minimum(kScaleBlock, a.hidden - column);
        float scale;
        if (a.given_scale) {
          scale = *a.given_scale;
        } else {
          scale = scale_from_amax(kernels.amax_finite(x + column * bytes, a.dtype, columns));
          a.scale[block * a.scale_block_stride + r] = scale;
        }
        kernels.quantize(x + column * bytes, a.dtype, columns, scale, q + column);
      }
    }
  });
}

void combine(const CombineArguments& a, const ThreadPool& pool) {
  const DispatchKernels& kernels = microkernels().dispatch;
  const int64_t bytes = element_size(a.dtype);
  parallel_ranges(pool, a.tokens, rows_per_task(a.tokens, a.hidden * bytes, pool),
                  [&](int64_t begin, int64_t end, int) {
                    std::vector<const void*> y(a.top_k);
                    for (int64_t t = begin; t < end; ++t) {
                      const int32_t* rows = a.rows + t * a.top_k;
                      for (int64_t j = 0; j < a.top_k; ++j) y[j] = rows[j] < 0 ? nullptr : a.y.row(rows[j], bytes);
                      kernels.combine_token(a.dtype, a.hidden, a.top_k, y.data(), a.weights + t * a.top_k,
                                            a.shared.data ? a.shared.row(t, bytes) : nullptr,
                                            a.residual.data ? a.residual.row(t, bytes) : nullptr,
                                            static_cast<char*>(a.out) + t * a.hidden * bytes);
                    }
                  });
}

void combine_backward(const CombineBackwardArguments& a, const ThreadPool& pool) {
  const DispatchKernels& kernels = microkernels().dispatch;
  const int64_t bytes = element_size(a.dtype);
  parallel_ranges(
      pool, a.rows_of_y, rows_per_task(a.rows_of_y, a.hidden * bytes, pool), [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
          void* grad_y = static_cast<char*>(a.grad_y) + r * a.hidden * bytes;
          const int64_t assignment = a.assignments[r];
          if (assignment < 0) {
            std::memset(grad_y, 0, a.hidden * bytes);
            continue;
          }
          a.grad_weights[assignment] =
              kernels.combine_row_backward(a.dtype, a.hidden, a.weights[assignment],
                                           a.grad_out.row(assignment / a.top_k, bytes), a.y.row(r, bytes), grad_y);
        }
      });
}

}  // namespace hunyuan_kernels::cpu
