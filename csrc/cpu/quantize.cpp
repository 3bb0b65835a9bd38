// Quantization to e4m3:  q = round_e4m3(x / scale),  scale = amax / 448 over the elements that share it.
//
// A region is what one task quantizes with one scale or with a row of scales: some rows (recipes row and block_1x128),
// 128 rows (block_128x128), or a part of the tensor after a first pass over it (tensor). Each element is read from
// memory once, except by the dynamic recipe `tensor`, which needs amax before the first quotient.
#include "cpu/quantize.h"

#include <algorithm>
#include <vector>

#include "common/integer_math.h"
#include "cpu/isa/microkernels.h"

namespace hunyuan_kernels::cpu {
namespace {

constexpr int64_t kElementsPerTask = 1 << 15;

class Quantizer {
 public:
  Quantizer(const QuantizeArguments& arguments, const QuantizeKernels& kernels) : a(arguments), kernels_(kernels) {}

  const char* x(int64_t matrix, int64_t row, int64_t column) const {
    return static_cast<const char*>(a.x) +
           (matrix * a.matrix_stride + row * a.row_stride + column) * element_size(a.dtype);
  }

  float amax(int64_t matrix, int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    float largest = 0.0f;
    for (int64_t r = row; r < row + rows; ++r)
      largest = std::max(largest, kernels_.amax_finite(x(matrix, r, column), a.dtype, columns));
    return largest;
  }

  // The scale of one block: the given one, or the block's own, which is also written.
  float scale(int64_t matrix, int64_t row_block, int64_t column_block, int64_t row, int64_t rows, int64_t column,
              int64_t columns) const {
    int64_t at = matrix * a.scale_matrix_stride + row_block * a.scale_row_stride + column_block * a.scale_column_stride;
    if (a.static_scale) return a.static_scale[at];
    return a.scale[at] = scale_from_amax(amax(matrix, row, rows, column, columns));
  }

  void quantize(int64_t matrix, int64_t row, int64_t rows, int64_t column, int64_t columns, float scale) const {
    for (int64_t r = row; r < row + rows; ++r)
      kernels_.quantize(x(matrix, r, column), a.dtype, columns, scale,
                        a.q + (matrix * a.rows + r) * a.columns + column);
  }

  // Rows [row, row + rows) of a matrix, in blocks of block_rows x block_columns.
  void quantize_blocks(int64_t matrix, int64_t row, int64_t rows, int64_t block_rows, int64_t block_columns) const {
    for (int64_t r = row; r < row + rows; r += block_rows)
      for (int64_t c = 0; c < a.columns; c += block_columns) {
        int64_t height = minimum(block_rows, row + rows - r), width = minimum(block_columns, a.columns - c);
        quantize(matrix, r, height, c, width, scale(matrix, r / block_rows, c / block_columns, r, height, c, width));
      }
  }

  const QuantizeArguments& a;

 private:
  const QuantizeKernels& kernels_;
};

// body(matrix, first row, rows) over all matrices, about kElementsPerTask elements at a time and whole blocks of rows.
template <typename Body>
void for_each_region(const Quantizer& q, const ThreadPool& pool, int64_t block_rows, Body&& body) {
  int64_t rows = round_up(maximum(1, kElementsPerTask / maximum(1, q.a.columns)), block_rows);
  int64_t regions = ceil_div(q.a.rows, rows);
  parallel_tasks(pool, q.a.matrices * regions, [&](int64_t task, int) {
    int64_t row = task % regions * rows;
    body(task, task / regions, row, minimum(rows, q.a.rows - row));
  });
}

void quantize_tensors(const Quantizer& q, const ThreadPool& pool) {
  const QuantizeArguments& a = q.a;
  if (!a.static_scale) {
    int64_t rows = maximum(1, kElementsPerTask / maximum(1, a.columns)), regions = ceil_div(a.rows, rows);
    std::vector<float> largest(a.matrices * regions);
    for_each_region(q, pool, 1, [&](int64_t task, int64_t matrix, int64_t row, int64_t count) {
      largest[task] = q.amax(matrix, row, count, 0, a.columns);
    });
    for (int64_t matrix = 0; matrix < a.matrices; ++matrix) {
      float amax = 0.0f;
      for (int64_t i = 0; i < regions; ++i) amax = std::max(amax, largest[matrix * regions + i]);
      a.scale[matrix * a.scale_matrix_stride] = scale_from_amax(amax);
    }
  }
  const float* scale = a.static_scale ? a.static_scale : a.scale;
  for_each_region(q, pool, 1, [&](int64_t, int64_t matrix, int64_t row, int64_t count) {
    q.quantize(matrix, row, count, 0, a.columns, scale[matrix * a.scale_matrix_stride]);
  });
}

}  // namespace

float scale_from_amax(float amax) {
  float scale = amax / 448.0f;
  return scale < 0x1p-126f ? 1.0f : scale;
}

void quantize_fp8(const QuantizeArguments& arguments, const ThreadPool& pool) {
  const Quantizer q(arguments, microkernels().quantize);
  if (arguments.recipe == QuantizeRecipe::tensor) return quantize_tensors(q, pool);
  int64_t block_rows = arguments.recipe == QuantizeRecipe::block_128x128 ? kScaleBlock : 1;
  int64_t block_columns = arguments.recipe == QuantizeRecipe::row ? maximum(1, arguments.columns) : kScaleBlock;
  for_each_region(q, pool, block_rows, [&](int64_t, int64_t matrix, int64_t row, int64_t rows) {
    // A row without elements has a scale too.
    if (arguments.columns == 0 && arguments.recipe == QuantizeRecipe::row) {
      for (int64_t r = row; r < row + rows; ++r) q.scale(matrix, r, 0, r, 1, 0, 0);
      return;
    }
    q.quantize_blocks(matrix, row, rows, block_rows, block_columns);
  });
}

}  // namespace hunyuan_kernels::cpu
