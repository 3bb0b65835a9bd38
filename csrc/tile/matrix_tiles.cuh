// The tiles of a grouped product in the order in which a persistent block walks over them, found from expert_offsets:
// every warp that asks gets the same ones, without a word between them.
//
//   rows               tiles of the groups' rows, group after group, then those of the rows past the last group, whose
//                      depth is 0. Without offsets there is one matrix: all rows, of the whole depth.
//   weight gradient    tiles of equal lines for every group, whose depth is the group's rows
//
// Within a group the tiles go in panels of panel_tiles below each other before the next column of tiles; with
// column_panels in panels of panel_tiles side by side before the next row of tiles. The panel's rows of a (or columns
// of b) then stay in L2 while all of b (or of a) goes past them.
//
// With kBlocks > 1 the blocks of a cluster take tiles side by side, always as many: some may lie past the last column.
#pragma once
#include "arch/cluster.cuh"
#include "tile/expert_tiles.cuh"

namespace hunyuan_kernels::tile {

// A tile of the result.
struct MatrixTile {
  int32_t group;
  int32_t line, line_end;  // the first one, and where the group (or the tensor) ends
  int32_t column;          // the first one
  int32_t depth, depth_end;
};

// Arguments: expert_offsets, experts, rows, lines, columns, depth, panel_tiles, column_panels of
// kernels/grouped_gemm_arguments.h.
template <typename Arguments, int kLines, int kColumns, bool kWeightGradient, int kBlocks = 1>
class MatrixTiles {
 public:
  __device__ explicit MatrixTiles(const Arguments& a)
      : a_(a),
        columns_((a.columns + kBlocks * kColumns - 1) / (kBlocks * kColumns)),
        experts_(a.expert_offsets, a.experts, a.rows, !kWeightGradient),
        number_(blockIdx.x / kBlocks) {}

  // False after the last one. By whole warps.
  __device__ __forceinline__ bool next(MatrixTile& t) {
    GroupOfTile of;
    auto lines_of = [&](int32_t rows) { return (static_cast<uint32_t>(rows) + kLines - 1) / kLines; };
    const uint32_t gradient_lines = lines_of(a_.lines);
    auto tiles_of = [&](int32_t rows) { return (kWeightGradient ? gradient_lines : lines_of(rows)) * columns_; };
    if (!experts_.find(number_, tiles_of, of)) return false;
    number_ += gridDim.x / kBlocks;
    const uint32_t lines = kWeightGradient ? gradient_lines : lines_of(of.end - of.begin);
    const uint32_t along = a_.column_panels ? columns_ : lines, across = a_.column_panels ? lines : columns_;
    const uint32_t panel = of.tile / (a_.panel_tiles * across), first = panel * a_.panel_tiles;
    const uint32_t in_panel = of.tile - first * across, extent = min(along - first, a_.panel_tiles);
    const uint32_t inner = first + in_panel % extent, outer = in_panel / extent;
    const int32_t line = (a_.column_panels ? outer : inner) * kLines;
    t.group = of.group;
    t.column = (a_.column_panels ? inner : outer) * (kBlocks * kColumns);
    if constexpr (kBlocks > 1) t.column += arch::cluster_rank() * kColumns;
    if constexpr (kWeightGradient) {
      t.line = line;
      t.line_end = a_.lines;
      t.depth = of.begin;
      t.depth_end = of.end;
    } else {
      t.line = of.begin + line;
      t.line_end = of.end;
      t.depth = 0;
      t.depth_end = of.group < a_.experts || !a_.expert_offsets ? a_.depth : 0;
    }
    return true;
  }

 private:
  const Arguments& a_;
  const uint32_t columns_;  // of kBlocks tiles
  ExpertTiles experts_;
  uint32_t number_;
};

}  // namespace hunyuan_kernels::tile
