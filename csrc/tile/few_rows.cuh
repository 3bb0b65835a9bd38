// Products for groups of few rows: weights on wgmma's M side, kTokens rows on its N side, and a cluster that divides
// the depth. Which tile is next, what the roles of a block do with it, and which of its sums a thread writes.
#pragma once
#include "arch/cluster.cuh"
#include "arch/wgmma.cuh"
#include "tile/cluster_sum.cuh"
#include "tile/expert_tiles.cuh"
#include "tile/warp_specialized.cuh"

namespace hunyuan_kernels::tile {

struct FewRowsTile {
  int32_t group;
  int32_t row, row_end;      // the first row, and where the group ends
  int32_t weight;            // the first one
  int32_t depth, depth_end;  // of this block
};

// Beside the ring's barriers.
struct FewRowsBarriers {
  ClusterSumBarriers sum;
  __device__ void initialize() { sum.initialize(kConsumerWarps * arch::cluster_size()); }
};

// Of the consumers.
using FewRowsSum = ClusterSum<kWarpSpecializedThreads - 128>;

// Sums of a thread, for each part of a tile (SwiGLU: gate and up).
template <int kParts, int kValues>
__device__ __forceinline__ void pin(float (&sums)[kParts][kValues]) {
#pragma unroll
  for (auto& part : sums)
#pragma unroll
    for (float& sum : part) arch::pin(sum);
}
template <int kParts, int kValues>
__device__ __forceinline__ void clear(float (&sums)[kParts][kValues]) {
#pragma unroll
  for (auto& part : sums)
#pragma unroll
    for (float& sum : part) sum = 0.0f;
}

// Tiles of kWeights x kTokens, group after group, for each block of a cluster the part of the depth that is its own: in
// stages of kDepth. Those of the rows past the last group have no depth. Without offsets there is one matrix: all rows.
//
// Arguments: expert_offsets, experts, rows, columns, depth of kernels/grouped_gemm_arguments.h.
template <typename Arguments, int kTokens, int kWeights, int kDepth>
class FewRowsTiles {
 public:
  __device__ explicit FewRowsTiles(const Arguments& a)
      : a_(a),
        columns_((a.columns + kWeights - 1) / kWeights),
        experts_(a.expert_offsets, a.experts, a.rows, true),
        step_(gridDim.x / arch::cluster_size()),
        number_(blockIdx.x / arch::cluster_size()) {
    const int32_t blocks = (a.depth + kDepth - 1) / kDepth, size = static_cast<int32_t>(arch::cluster_size());
    const int32_t part = (blocks + size - 1) / size * kDepth;
    depth_ = min(static_cast<int32_t>(arch::cluster_rank()) * part, a.depth);
    depth_end_ = min(depth_ + part, a.depth);
  }

  // False after the last one. By whole warps.
  __device__ __forceinline__ bool next(FewRowsTile& t) {
    GroupOfTile of;
    auto row_tiles = [](int32_t rows) { return (static_cast<uint32_t>(rows) + kTokens - 1) / kTokens; };
    if (!experts_.find(number_, [&](int32_t rows) { return row_tiles(rows) * columns_; }, of)) return false;
    number_ += step_;
    const uint32_t height = row_tiles(of.end - of.begin);  // rows first: their weights are in L2
    t.group = of.group;
    t.row = of.begin + static_cast<int32_t>(of.tile % height) * kTokens;
    t.row_end = of.end;
    t.weight = of.tile / height * kWeights;
    t.depth = depth_;
    t.depth_end = of.group < a_.experts || !a_.expert_offsets ? depth_end_ : depth_;
    return true;
  }

 private:
  const Arguments& a_;
  const uint32_t columns_;
  ExpertTiles experts_;
  const uint32_t step_;
  uint32_t number_;
  int32_t depth_, depth_end_;
};

// Of 64 weights, number `half` of the tile, and all its rows: the first column of this thread, which has two, 8 apart.
__device__ __forceinline__ int32_t few_rows_column(const FewRowsTile& t, int half) {
  return t.weight + 64 * half + static_cast<int32_t>(threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4);
}

// store(row, column, i, value) for the elements that this thread writes: `value` is the number of their sum, `i` says
// which of its two columns it is. 8 rows by the first block of the cluster, the next 8 by the second one, and so on.
template <int kTokens, typename Store>
__device__ __forceinline__ void for_own_elements(const FewRowsTile& t, int half, int32_t columns, Store&& store) {
  const uint32_t blocks = arch::cluster_size();
  for (uint32_t eight = arch::cluster_rank(); eight < kTokens / 8; eight += blocks)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t row = t.row + static_cast<int32_t>(8 * eight + threadIdx.x % 4 * 2) + i % 2;
      const int32_t column = few_rows_column(t, half) + 8 * (i / 2);
      if (row < t.row_end && column < columns) store(row, column, i / 2, static_cast<int>(4 * eight) + i);
    }
}

// The roles of a block. `product`: the part of a kernel's arguments `a` that says which tiles there are. A kernel has
//   Frame, Tiles, kStageDepth, kConsumerRegisters (tile/warp_specialized.cuh), kParts, kValues: sums of a thread
//   load(product, tile, depth, stage, full)                what a stage holds from `depth` on, by TMA, by one thread
//   multiply_tile(sums, a, tile, half, memory, ring)       the sums of this block's part of the depth
//   store(a, tile, half, sum)                              those of the cluster, for_own_elements of the thread
template <typename Kernel>
struct FewRowsProduct {
  using Frame = typename Kernel::Frame;
  using Memory = typename Frame::Memory;
  using Ring = typename Frame::Ring;

  template <typename Product>
  __device__ __forceinline__ static void produce(const Product& product, const Memory& memory) {
    Ring ring(memory.barriers.ring);
    typename Kernel::Tiles tiles(product);
    const bool issues = threadIdx.x % 32 == 0;
    for (FewRowsTile t; tiles.next(t);) {
      if (!issues) continue;
      for (int32_t depth = t.depth; depth < t.depth_end; depth += Kernel::kStageDepth, ring.advance()) {
        ring.fill(Frame::kStageBytes);
        Kernel::load(product, t, depth, memory.stage(ring.stage()), ring.full());
      }
    }
  }

  template <typename Arguments, typename Product>
  __device__ __forceinline__ static void consume(const Arguments& a, const Product& product, const Memory& memory) {
    const int half = consumer_half();
    Ring ring(memory.barriers.ring);
    typename Kernel::Tiles tiles(product);
    FewRowsSum sum(memory.barriers.more.sum, reinterpret_cast<float*>(memory.scratch), threadIdx.x - 128);
    float sums[Kernel::kParts][Kernel::kValues];
    for (FewRowsTile t; tiles.next(t);) {
      Kernel::multiply_tile(sums, a, t, half, memory, ring);
      sum.exchange([&](auto&& write) {
#pragma unroll
        for (int i = 0; i < Kernel::kParts * Kernel::kValues; ++i)
          write(i, sums[i / Kernel::kValues][i % Kernel::kValues]);
      });
      Kernel::store(a, t, half, sum);
      sum.release();
    }
    sum.finish();
  }

  template <typename Arguments, typename Product>
  __device__ __forceinline__ static void run(const Arguments& a, const Product& product) {
    Frame::template run<Kernel::kConsumerRegisters, true>([&](const Memory& memory) { produce(product, memory); },
                                                          [&](const Memory& memory) { consume(a, product, memory); },
                                                          product.a, product.b);
  }
};

}  // namespace hunyuan_kernels::tile
