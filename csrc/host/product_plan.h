// What the plans of matrix products have in common: candidates, the model that compares them, and how they are printed.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "driver/device.h"

namespace hunyuan_kernels::host {

// What only hardware can decide. Off until it was measured there.
struct ProductOptions {
  bool multicast = false;      // clusters of two blocks with tiles side by side load each row of a once
  bool column_panels = false;  // the order of tiles within a group: tile/matrix_tiles.cuh

  // Names with commas between them. Raises for others, in the name of `op`.
  static ProductOptions of(const char* op, const std::string& names);
};

// A way to cut the work, whether it was taken or not. Times are in SM clocks, of the model in host/product_plan.cpp.
struct ProductCandidate {
  int tile_rows, tile_columns;  // tile_columns of b, gate and up together
  int cluster = 0;              // few rows: blocks that divide the depth; 0: a kernel that divides nothing
  int multicast = 1;            // blocks of a cluster with tiles side by side, that load each row of a once
  std::string illegal{};        // why it cannot be taken; empty: it can
  int64_t tiles = 0;            // the most that the group sizes can make
  int64_t likely_tiles = 0;     // with groups of equal size
  int64_t waves = 0;            // of the likely tiles, over the SMs
  double flops = 0;             // of the likely tiles
  double bytes = 0;             // that the likely tiles load into shared memory
  double sm_clocks = 0;         // of the waves
  double memory_clocks = 0;     // to read the weights of the experts that have rows

  double clocks() const { return sm_clocks > memory_clocks ? sm_clocks : memory_clocks; }
};

// Raises when one of them is more than the kernels can count.
void check_extent(const char* op, const char* what, int64_t value);

// What the model knows of a problem. Columns are those of the result, of which SwiGLU makes one from two lines of b.
struct ProductShape {
  const char* op;                // for messages
  bool weight_gradient = false;  // tiles are of groups x lines x columns, their depth is the group's rows
  bool rest = true;              // rows past the last group are one more
  int parts = 1;                 // 2: SwiGLU
  DType operands = DType::bfloat16, out = DType::bfloat16;
  bool e4m3_weights = false;  // of bf16 operands b is e4m3 in memory
  int tile_depth = 64;        // of a stage
  int64_t groups = 1, rows = 0, lines = 0, columns = 0, depth = 0;

  // Of a [rows, depth] and b [experts, columns, depth]. Raises when a problem has more than the kernels can count.
  template <typename Problem>
  ProductShape(const char* op_name, const Problem& p, int parts_of_tile)
      : op(op_name),
        parts(parts_of_tile),
        out(p.out),
        groups(p.experts),
        rows(p.rows),
        columns(p.columns / parts_of_tile),
        depth(p.depth) {
    check_extent(op, "number of rows", p.rows);
    check_extent(op, "number of columns", p.columns);
    check_extent(op, "depth", p.depth);
    check_extent(op, "number of experts", p.experts);
  }
};

// What every plan of a product holds, without the problem.
struct ProductChoice {
  std::vector<ProductCandidate> candidates;
  size_t taken = 0;                            // of the candidates
  int tile_depth = 64;                         // of a stage, of all candidates
  int panel_tiles = 1;                         // of tile/matrix_tiles.cuh, in clusters of tiles
  bool column_panels = false;                  // likewise
  std::vector<driver::KernelLaunch> launches;  // one; none when there is nothing to write

  const ProductCandidate& candidate() const { return candidates[taken]; }
  // Estimates the candidates and takes the best possible one: the fewest clocks. Raises when one has too many tiles.
  void take_best(const ProductShape& shape, int64_t sms, const ProductOptions& options = {});
  // As many clusters as there are tiles or the GPU holds; kernel, threads and shared memory are to be filled in.
  driver::KernelLaunch launch_of(int64_t sms) const;
  // A line for each candidate and launch, with a line break before it.
  std::string lines() const;
};

// title(problem): the first line of the text.
template <typename Problem>
struct ProductPlan : ProductChoice {
  Problem problem;

  std::string text() const { return title(problem) + lines(); }
};

// Columns of a row of a result as they have to lie in memory: rounded up to what TMA takes.
int64_t padded_columns(int64_t columns, DType out);

std::string extents_text(std::initializer_list<int64_t> sizes);

}  // namespace hunyuan_kernels::host
