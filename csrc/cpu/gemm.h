// The GEMM core of the CPU backend: for every group g of rows,
//
//   sums_g[rows_g, columns] = sum_k a_g[row, k] * b_g[column, k]        (fp32 accumulation)
//
// and an epilogue that puts the sums somewhere. Grouped GEMM, its two gradients, SwiGLU and the FP8 GEMMs are this with
// other operands and epilogues. These vary independently:
//
//   element types      a packer for each (isa/gemm.inl): float32, bfloat16 and e4m3, which expands exactly on the way
//   order of operands  strides: each operand has one stride of 1, along k or across the lines
//   multiplication     GemmScheme: fp32 words, or pairs of bf16 where the CPU has dot products and both types fit
//   scales             per tensor, row or channel: in an epilogue, on the finished sums; blocks along k:
//   GemmBlockScales epilogue           GemmEpilogue
//
// How the work is cut: rows in blocks, columns in panels of one tile's width, k in blocks. First the rows of a are
// packed, block by block, into a slab of at most kGemmSlabBytes that all threads read; then every task (row block,
// panel of columns) packs its part of b, one k block at a time, into scratch that stays in L2, and runs all rows of the
// block over it. b is read once for every row block and never copied as a whole. Where there are many row blocks, a
// thread does all panels of some before it comes back for more, so that it alone stores to their rows.
//
// Groups of few rows (at most GemmScheme::dot_rows: 16, 12 or 8) against weights with k stride 1 are done by dot
// products instead (isa/gemm_dot.inl): every weight goes once from memory to registers, and is read again from L2 for
// more than 8, 6 or 4 rows.
//
// Weights that were packed once (GemmOperand::packed) are multiplied as they lie, in tiles of kGemmMaxColumns columns:
// up to GemmScheme::packed_rows rows in one pass over them, more rows one k block at a time. Every sum is that of the
// first way, bit for bit, for any number of rows.
//
// In each way the order of a sum depends on K alone: a row's result does not depend on the other rows, on its place or
// on the number of threads. Only the choice of dot products, and their order for a single row, depend on the number of
// rows of the group.
#pragma once
#include <cstdint>
#include <vector>

#include "common/dtype.h"
#include "common/parallel.h"
#include "cpu/isa/microkernels.h"

namespace hunyuan_kernels::cpu {

// How elements lie: element k of line i is at data[i * line_stride + k * k_stride]. One of the strides is 1.
struct GemmOperand {
  DType dtype;
  int64_t line_stride, k_stride;
  bool packed = false;  // b only: as `prepack` lays it out (isa/gemm.h); the strides do not count

  bool along_k() const { return k_stride == 1; }
  int64_t other_stride() const { return along_k() ? line_stride : k_stride; }
};

// One group: lines of a, all lines of b. Groups without rows are skipped; with depth 0 the sums are zero.
struct GemmGroup {
  const void* a;
  const void* b;
  int64_t rows, depth;
  const int32_t* a_lines = nullptr;  // row i is line a_lines[i] of a (which is along k), not line i
};

// A finished block of sums. `sums` may be changed in place.
struct GemmTile {
  int64_t group;
  int64_t row, rows;        // within the group
  int64_t column, columns;  // with paired columns: of each half
  int width;                // sums[rows][width]; columns past `columns` hold anything
  float* sums;
};

class GemmEpilogue {
 public:
  virtual ~GemmEpilogue() = default;
  // Called once for each tile, from any thread, in any order.
  virtual void operator()(const GemmTile& tile) const = 0;
};

// Scales of blocks along k: sums = sum over k blocks of row scale * column scale * (sum within the block). With paired
// columns, columns() gives those of the second half at scales + width / 2.
class GemmBlockScales {
 public:
  virtual ~GemmBlockScales() = default;
  virtual void rows(int64_t group, int64_t row, int64_t rows, int64_t k_block, float* scales) const = 0;
  virtual void columns(int64_t group, int64_t column, int64_t columns, int width, int64_t k_block,
                       float* scales) const = 0;
};

constexpr int64_t kGemmMaxScaleBlock = 256;
constexpr int64_t kGemmMaxColumns = 64;  // widest tile of sums

struct GemmProblem {
  GemmOperand a, b;
  int64_t columns = 0;  // lines of b in each group; with paired columns, those of each half
  std::vector<GemmGroup> groups;
  // Not 0: b has two halves, the second one starting at this line, and a tile holds column c of the first half at c and
  // of the second half at width / 2 + c (gate and up of SwiGLU).
  int64_t second_half = 0;
  const GemmBlockScales* block_scales = nullptr;
  int64_t scale_block = 0;  // elements of k that share a scale: even, at most kGemmMaxScaleBlock
};

constexpr int64_t kGemmBlockRows = 384;  // rows that share a pass over b: a multiple of every tile

// Packed rows of a that are held at a time, by the calling thread, between calls too.
constexpr int64_t kGemmSlabBytes = int64_t{16} << 20;

// Runs every group. `microkernels` as fetched by the op's entry; the tasks run on `pool`.
void gemm(const Microkernels& microkernels, const ThreadPool& pool, const GemmProblem& problem,
          const GemmEpilogue& epilogue);

}  // namespace hunyuan_kernels::cpu
