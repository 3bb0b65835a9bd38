// Microkernels of the GEMM core: see gemm.inl, and cpu/gemm.h for who calls them.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace hunyuan_kernels::cpu {

// Both operands of a GEMM are sets of lines of `depth` elements (rows of a; columns of a @ b, which are rows of b). A
// panel holds some lines as 32-bit words, step by step, so that the multiplication reads it in order:
//   panel[depth / k_step][width][k_step]
// Elements past the depth are zero.
using GemmPack = void (*)(const void* lines,  // element k of line i is lines[i * line_stride + k * k_stride]
                          int64_t stride,     // the stride that is not 1
                          int64_t available,  // lines that may be read from `lines` on: at least `count`
                          int count,          // lines that matter; others up to the vector's end hold anything
                          int64_t depth,      // elements of each line
                          int width,          // lines of the whole panel (words from one step to the next)
                          uint32_t* panel     // its first word for line 0; kGemmPanelSlack words past its end get dirty
);

// Words that a packer may write past the end of a panel (whole vectors, whole words of several elements).
constexpr int kGemmPanelSlack = 128;

// What is packed next, brought into L2 during a multiplication: two pieces of 64 * lines bytes (the halves of the
// columns) at each of `runs` places.
struct GemmPrefetch {
  const char* first;
  int64_t stride, runs;  // bytes from one place to the next
  int64_t second;        // bytes from the first piece to the second
  int64_t lines;
};

// Scales of blocks of `block` elements of k, 0: none. Those of block i are rows[i * row_stride + row] and
// columns[i * column_stride + column].
struct GemmDotScales {
  int64_t block = 0;
  const float* rows = nullptr;
  const float* columns = nullptr;
  int64_t row_stride = 0, column_stride = 0;
};

constexpr int kGemmDotPadding = 16;

// Few rows against lines of b as they lie (k stride 1): weights go from memory to registers.
struct GemmDot {
  int k_unit;   // packed rows of a are padded with zeros to a multiple of this many elements
  int rows;     // of a call of multiply
  int columns;  // of b that a call should have
  // Rows of a in the order in which words of b come apart.
  void (*pack_rows)(const void* const* rows, int64_t k_stride, int count, int64_t depth, uint32_t* packed);
  // sums[row][column] over all of k for `columns` lines of b, b_stride elements apart. Rows of sums are `width` apart;
  // scales of columns are read, and sums written, up to a multiple of kGemmDotPadding columns. Scale blocks are a
  // multiple of k_unit. `next`: the line that this thread comes to next, for prefetches, or null.
  void (*multiply)(const uint32_t* a, int rows, const void* b, int64_t b_stride, int columns, int64_t depth,
                   float* sums, int width, const GemmDotScales& scales, const void* next);
};

// Weights that were laid out once: panels of kPackedColumns columns, each contiguous over the whole depth. A panel is a
// sequence of blocks. What `prepack` makes has lines of 64 bytes: one word of each column, that is 4 / (element size)
// of k. Words of e4m3 lie as prepack.inl says, blocks of NF4 as common/nf4.h says. The order is that of every
// instruction set.
constexpr int kPackedColumns = 16, kPackedLine = 64;
constexpr int kMaxPackedPanels = 4;
constexpr int64_t kPackedPrefetch = -1;

// The panels of a call, and where the reading of each goes on after it.
struct PackedPanels {
  int count = 0;
  const char* first[kMaxPackedPanels];
  const char* next[kMaxPackedPanels];
  int64_t prefetch = 0;  // bytes ahead, at most those of the call; 0: not at all; kPackedPrefetch: as suits the rows
};

struct GemmPacked {
  int depth, bytes;  // k and bytes of a block
  // sums[rows][width] as GemmScheme::multiply computes them, bit for bit, for the columns of the panels, over `blocks`
  // blocks. rows is at most GemmScheme::packed_rows.
  void (*multiply)(const uint32_t* a, int rows, const PackedPanels& b, int64_t blocks, float* sums, int width,
                   bool accumulate, const float* row_scales, const float* column_scales);
  // The blocks of GemmScheme::columns columns as a panel of the scheme.
  void (*expand)(const PackedPanels& b, int64_t blocks, uint32_t* panel);
  // Expanding costs as much as multiplying by some rows: with more rows than this, it is done once for all of them.
  int rows_to_expand;
};

// One way to hold and multiply panels.
struct GemmScheme {
  int k_step;   // elements in a word: 1 (fp32) or 2 (a pair of bf16)
  int rows;     // rows of the largest tile of sums
  int columns;  // columns of every tile of sums: the width of b's panels
  // The packer for elements of `dtype`, nullptr where there is none. along_k: the k stride is 1, else the line stride.
  GemmPack (*packer)(DType dtype, bool along_k);
  // sums[rows][columns] = (accumulate ? sums : 0) + scale * (a panel of `rows` lines) x (b panel), over `steps` words;
  // rows of sums are `width` apart.
  // scale is row_scales[row] * column_scales[column], or 1 where both are null. Every sum runs over the steps in order,
  // whatever `rows` is. prefetch may be null.
  void (*multiply)(const uint32_t* a, const uint32_t* b, int64_t steps, int rows, float* sums, int width,
                   bool accumulate, const float* row_scales, const float* column_scales, const GemmPrefetch* prefetch);
  int dot_rows;  // groups of up to this many rows are done by dot products, where there are such
  // For these element types; its multiply is nullptr where there is none.
  GemmDot (*dot)(DType a, DType b);
  int packed_rows;  // rows of one call of GemmPacked::multiply
  // For weights of this type; its multiply is nullptr where there is none.
  GemmPacked (*packed)(DType b);
};

struct GemmKernels {
  GemmScheme floats;  // fp32 words: any element type
  GemmScheme pairs;   // bf16 dot products: bf16 and what bf16 holds exactly; rows == 0 where the set has none
  // out[r][c] = sums[r][c] in the dtype of out (float32 or bfloat16); sums has `width` columns, out_stride in elements.
  void (*store)(const float* sums, int width, int64_t rows, int64_t columns, DType dtype, void* out,
                int64_t out_stride);
  // out[r][c] += sums[r][c]
  void (*accumulate)(const float* sums, int width, int64_t rows, int64_t columns, float* out, int64_t out_stride);
};

}  // namespace hunyuan_kernels::cpu
