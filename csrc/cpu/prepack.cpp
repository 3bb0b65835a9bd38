#include "cpu/prepack.h"

#include "cpu/expert_rows.h"

namespace hunyuan_kernels::cpu {

void prepack(const Microkernels& microkernels, const ThreadPool& pool, const ExpertWeights& b, void* packed) {
  const int64_t panels = b.rows / kPackedColumns, size = element_size(b.dtype), row_bytes = b.columns * size;
  if (row_bytes == 0) return;
  parallel_ranges(
      pool, b.experts * panels, maximum(1, kElementwiseGrain / (kPackedColumns * b.columns)),
      [&](int64_t begin, int64_t end, int) {
        for (; begin < end; ++begin) {
          const int64_t first = begin / panels * b.expert_stride + begin % panels * kPackedColumns * b.row_stride;
          microkernels.prepack.panel(address(b.data, b.dtype, first), b.row_stride * size, row_bytes, b.dtype,
                                     static_cast<char*>(packed) + begin * kPackedColumns * row_bytes);
        }
      });
}

}  // namespace hunyuan_kernels::cpu
