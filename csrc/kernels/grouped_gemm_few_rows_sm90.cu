// Products for groups of few rows, bound by reading the weights: those of kernels/grouped_gemm_sm90.cu, with the
// operands exchanged. For the rows r of group e:
//
//   rows       out[r, n] = sum_k b[e, n, k] a[r, k]; zeros for rows of no group
//   SwiGLU     out[r, i] = silu(g) u,  g = sum_k b[e, i, k] a[r, k],  u = sum_k b[e, I + i, k] a[r, k];
//              g and u too, rounded, where a.preactivation_data is given
//
// The weights are wgmma's M side, the rows (tokens) its N side: 16 or 64 of them, so that few products are made for
// rows that are not there. bf16 operands, fp32 sums, bf16 or fp32 out. Shapes: kernels/grouped_gemm_arguments.h.
//
// Who does what: a cluster of 1 to 8 blocks takes tiles of 128 weights (SwiGLU: of gate and of up) x kTokens rows. Its
// blocks divide the depth: block c has the c-th part of the k-blocks. Of a block,
//   warpgroup 0    warp 0 finds the tile and loads weights and rows for each k-block, by TMA, into a ring of stages.
//   warpgroups 1-2 each multiply 64 of the weights (SwiGLU: of both halves): m64n16k16 or m64n64k16.
// Then the sums of the blocks are added in the order of their ranks (tile/cluster_sum.cuh), 8 tokens by block 0, the
// next 8 by block 1, and so on; SwiGLU follows the addition. The result is small beside the weights and leaves straight
// from the registers, 8 neighbouring columns of 4 x 2 rows per warp and store.
//
//   producer  a, b --TMA--> [ stage | ... | stage ] --wgmma--> registers --> [ addends ] --other blocks'--> sum --> out
//
// Ragged groups: as there. Order of a sum: within a block by depth, then by rank: it depends on the size of the
// cluster.
//
// Limits: those of kernels/grouped_gemm_sm90.cu. Any distribution of rows is right; a group with many rows has its
// weights read again (from L2, mostly) for every kTokens rows.
#include "arch/math.cuh"
#include "kernels/grouped_gemm_arguments.h"
#include "tile/expert_lanes.cuh"
#include "tile/few_rows.cuh"
#include "tile/operand.cuh"

namespace hunyuan_kernels::kernels {
namespace {

using arch::Major;
using tile::bfloat16;
using tile::kBoxBytes;
using tile::kDepth;
using tile::kProductDepth;

using Tile = tile::FewRowsTile;

template <int kTokens, int kParts_, Major kMajorWeights, typename Output>
struct FewRows {
  static constexpr int kParts = kParts_, kStageDepth = kDepth, kConsumerRegisters = 0;
  static constexpr int kTokensOffset = kParts * kFewRowsWeights * tile::kSwizzledRowBytes;  // in a stage
  static constexpr int kValues = kTokens / 2;  // sums of a thread, for each part
  using Frame = tile::WarpSpecialized<few_rows_stages(kTokens, kParts), few_rows_stage_bytes(kTokens, kParts),
                                      few_rows_sums_bytes(kTokens, kParts), tile::FewRowsBarriers>;
  static_assert(Frame::kSharedBytes <= few_rows_shared_bytes(kTokens, kParts));
  using Memory = typename Frame::Memory;
  using Ring = typename Frame::Ring;
  using Tiles = tile::FewRowsTiles<GroupedGemmArguments, kTokens, kFewRowsWeights, kDepth>;

  __device__ __forceinline__ static void load(const GroupedGemmArguments& a, const Tile& t, int32_t depth,
                                              uint32_t stage, uint64_t* full) {
    constexpr int kBoxLines = kMajorWeights == Major::k ? kFewRowsWeights : 64;
#pragma unroll
    for (int line = 0; line < kParts * kFewRowsWeights; line += kBoxLines) {
      const int32_t at = t.weight + line % kFewRowsWeights + line / kFewRowsWeights * a.columns;
      const uint32_t to = stage + line * tile::kSwizzledRowBytes;
      if constexpr (kMajorWeights == Major::k)
        arch::load_box(to, &a.b, full, depth, at, t.group);
      else
        arch::load_box(to, &a.b, full, at, depth, t.group);
    }
    arch::load_box(stage + kTokensOffset, &a.a, full, depth, t.row);
  }

  __device__ __forceinline__ static void multiply_tile(float (&sums)[kParts][kValues], const GroupedGemmArguments&,
                                                       const Tile& t, int half, const Memory& memory, Ring& ring) {
    const bool signals = threadIdx.x % 32 == 0;
    if (t.depth >= t.depth_end) tile::clear(sums);
    tile::pin(sums);
    uint32_t in_flight = 0;  // the stage whose products were issued last
    for (int32_t depth = t.depth; depth < t.depth_end; depth += kDepth, ring.advance()) {
      ring.wait_until_full();
      const uint32_t stage = memory.stage(ring.uniform_stage());
      const uint64_t tokens = tile::operand_descriptor<Major::k>(stage + kTokensOffset);
      arch::fence_products();
#pragma unroll
      for (int step = 0; step < kDepth / kProductDepth; ++step)
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const uint64_t weights = tile::operand_descriptor<kMajorWeights>(stage + (2 * part + half) * kBoxBytes);
          arch::multiply<kMajorWeights, Major::k>(sums[part], weights + step * tile::kDepthStep<kMajorWeights>,
                                                  tokens + step * tile::kDepthStep<Major::k>,
                                                  depth > t.depth || step > 0);
        }
      arch::commit_products();
      arch::wait_for_products<1>();
      if (signals && depth > t.depth) ring.release(in_flight);
      in_flight = ring.stage();
    }
    arch::wait_for_products<0>();
    tile::pin(sums);
    if (signals && t.depth < t.depth_end) ring.release(in_flight);
  }

  __device__ __forceinline__ static void store(const GroupedGemmArguments& a, const Tile& t, int half,
                                               const tile::FewRowsSum& sum) {
    tile::for_own_elements<kTokens>(t, half, a.columns, [&](int32_t row, int32_t column, int, int value) {
      Output* out = reinterpret_cast<Output*>(a.out_data) + row * int64_t{a.row_columns} + column;
      if constexpr (kParts == 2) {
        const float gate = sum.sum(value), up = sum.sum(kValues + value);
        tile::store_float(out, arch::silu(gate) * up);
        if (a.preactivation_data) {
          Output* both = reinterpret_cast<Output*>(a.preactivation_data) + int64_t{row} * 2 * a.row_columns + column;
          tile::store_float(both, gate);
          tile::store_float(both + a.row_columns, up);
        }
      } else {
        tile::store_float(out, sum.sum(value));
      }
    });
  }
};

}  // namespace

#define HK_KERNEL(name, ...)                                                         \
  extern "C" __global__ void __launch_bounds__(kGroupedGemmThreads, 1)               \
      grouped_gemm_few_rows_##name(const __grid_constant__ GroupedGemmArguments a) { \
    tile::FewRowsProduct<FewRows<__VA_ARGS__>>::run(a, a);                           \
  }
#define HK_KERNELS(tokens, suffix, major)                          \
  HK_KERNEL(tokens##_bfloat16##suffix, tokens, 1, major, bfloat16) \
  HK_KERNEL(tokens##_float32##suffix, tokens, 1, major, float)     \
  HK_KERNEL(swiglu_##tokens##suffix, tokens, 2, major, bfloat16)
HK_KERNELS(16, , Major::k)
HK_KERNELS(64, , Major::k)
HK_KERNELS(16, _across, Major::mn)
HK_KERNELS(64, _across, Major::mn)
#undef HK_KERNELS
#undef HK_KERNEL

}  // namespace hunyuan_kernels::kernels
