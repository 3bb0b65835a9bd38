// Products with weights in e4m3 and rows in bf16, dense or over expert-major rows, bound by reading the weights. For
// the rows r of group e, with w = b_scale(e, n, k / 128) b[e, n, k]:
//
//   rows       out[r, n] = sum_k w[e, n, k] a[r, k]; zeros for rows of no group
//   SwiGLU     out[r, i] = silu(g) u,  g = sum_k w[e, i, k] a[r, k],  u = sum_k w[e, I + i, k] a[r, k]
//
// The weights become bf16, exactly, in the registers from which wgmma takes its M side; the rows (tokens) are its N
// side, 16 or 64 of them, from shared memory. fp32 sums, bf16 or fp32 out. Shapes and boxes:
// kernels/fp8_gemm_arguments.h. Scales that are the same along K multiply the finished sums, the others the sum of each
// 128 of K.
//
// Who does what: as in kernels/grouped_gemm_few_rows_sm90.cu. A cluster of 1 to 8 blocks takes tiles of 128 weights
// (SwiGLU: of gate and of up) x kTokens rows; its blocks divide the depth. Of a block,
//   warpgroup 0    warp 0 finds the tile and loads weights and rows for each 128 of K, by TMA, into a ring of stages.
//   warpgroups 1-2 each multiply 64 of the weights (SwiGLU: of both halves), 64 of K at a time: while the products of
//   one
//                  half of a stage run, the weights of the next half are read and expanded into a second set of
//                  registers.
// Then the sums of the blocks are added in the order of their ranks and scaled; SwiGLU follows.
//
//   producer  a --TMA--> [ stage ] ------------------------wgmma--> registers --> [ addends ] --other blocks'--> out
//             b --TMA--> [ stage ] --> registers --expand--^
//
// kPacked: b as prepack leaves it on a GPU: 16 bytes for each load. Otherwise any e4m3 weights contiguous along K, read
// in pairs of bytes: eight times as many loads, the same bytes.
//
// Ragged groups and the order of a sum: as there. A NaN weight reaches its column alone, whatever the rows hold.
//
// Limits: those of kernels/fp8_gemm_sm90.cu. Any distribution of rows is right; a group with many rows has its weights
// read (from L2, mostly) and expanded again for every kTokens rows.
#include "arch/math.cuh"
#include "kernels/fp8_gemm_arguments.h"
#include "tile/e4m3_weights.cuh"
#include "tile/expert_lanes.cuh"
#include "tile/few_rows.cuh"

namespace hunyuan_kernels::kernels {
namespace {

using arch::Major;
using tile::bfloat16;
using tile::kFragmentSteps;
using tile::kWeightsBytes;
using Tile = tile::FewRowsTile;

constexpr int kLines = kFp8WeightOnlyLines, kDepth = kFp8GemmTileDepth;

// kInBlocks: scales vary along K.
template <int kTokens, int kParts_, bool kPacked, bool kInBlocks>
struct WeightOnly {
  static constexpr int kParts = kParts_, kStageDepth = kDepth;
  static constexpr int kTokensBytes = kTokens * tile::kSwizzledRowBytes;  // of 64 of K
  static constexpr int kStageBytes = kParts * kWeightsBytes + 2 * kTokensBytes;
  static_assert(kStageBytes == fp8_weight_only_stage_bytes(kTokens, kParts));
  static constexpr int kValues = kTokens / 2;  // sums of a thread, for each part
  // What all threads get alike is too little for gate and up.
  static constexpr int kConsumerRegisters = kParts == 2 ? 232 : 0;
  using Frame = tile::WarpSpecialized<fp8_weight_only_stages(kTokens, kParts), kStageBytes,
                                      fp8_weight_only_sums_bytes(kTokens, kParts), tile::FewRowsBarriers>;
  static_assert(Frame::kSharedBytes <= fp8_weight_only_shared_bytes(kTokens, kParts));
  using Memory = typename Frame::Memory;
  using Ring = typename Frame::Ring;
  using Sums = float[kParts][kValues];
  using Tiles = tile::FewRowsTiles<GroupedGemmArguments, kTokens, kLines, kDepth>;

  __device__ __forceinline__ static void load(const GroupedGemmArguments& a, const Tile& t, int32_t depth,
                                              uint32_t stage, uint64_t* full) {
    const int32_t panels = kParts * (a.columns / kFp8WeightOnlyPackedLines);  // of an expert
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int32_t line = t.weight + part * a.columns;
      if constexpr (kPacked)
        arch::load_box(stage + part * kWeightsBytes, &a.b, full, 0, depth / 16,
                       t.group * panels + line / kFp8WeightOnlyPackedLines);
      else
        arch::load_box(stage + part * kWeightsBytes, &a.b, full, depth, line, t.group);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      arch::load_box(stage + kParts * kWeightsBytes + i * kTokensBytes, &a.a, full, depth + 64 * i, t.row);
  }

  // The scale of a column of a part, at a block of K.
  __device__ __forceinline__ static float scale_of(const Fp8WeightOnlyArguments& a, const Tile& t, int part,
                                                   int32_t column, int32_t block) {
    const Fp8WeightScale& s = a.b_scale;
    return s.data[t.group * s.expert_stride + part * s.half_stride +
                  (s.per_channel ? column : column / kLines * s.column_block_stride) + block * s.block_stride];
  }

  __device__ __forceinline__ static void add(Sums& sums, Sums& products, const float (&factor)[kParts]) {
    tile::pin(products);
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int i = 0; i < kValues; ++i) sums[part][i] = fmaf(products[part][i], factor[part], sums[part][i]);
    tile::pin(products);
  }

  __device__ __forceinline__ static void multiply_tile(Sums& sums, const Fp8WeightOnlyArguments& a, const Tile& t,
                                                       int half, const Memory& memory, Ring& ring) {
    const bool signals = threadIdx.x % 32 == 0, multiplies = t.depth < t.depth_end;
    if (kInBlocks || !multiplies) tile::clear(sums);
    tile::pin(sums);
    if (!multiplies) return;
    Sums transient;             // of 128 of K
    float factor[kParts] = {};  // theirs
    uint32_t previous = 0;      // the stage before
    for (int32_t depth = t.depth; depth < t.depth_end; depth += kDepth, ring.advance()) {
      const uint32_t stage = memory.stage(ring.uniform_stage());
      ring.wait_until_full();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t fragments[kParts][kFragmentSteps][4];
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          tile::E4m3Weights<kPacked> weights;
          weights.load(stage + part * kWeightsBytes, half, i);
          // The products before the last half used the same registers. In blocks, the second half's are done by then.
          if (part == 0 && (i == 0 || !kInBlocks)) arch::wait_for_products<1>();
          weights.pin();
          weights.expand(fragments[part]);
        }
        if constexpr (kInBlocks) {
          if (i == 0) {
            arch::wait_for_products<0>();
            if (depth > t.depth) add(sums, transient, factor);
          }
        }
        if (i == (kInBlocks ? 0 : 1) && signals && depth > t.depth) ring.release(previous);
        const uint64_t tokens = tile::operand_descriptor<Major::k>(stage + kParts * kWeightsBytes + i * kTokensBytes);
        const bool accumulate = i > 0 || (!kInBlocks && depth > t.depth);
        arch::fence_products();
#pragma unroll
        for (int step = 0; step < kFragmentSteps; ++step)
#pragma unroll
          for (int part = 0; part < kParts; ++part)
            arch::multiply(kInBlocks ? transient[part] : sums[part], fragments[part][step],
                           tokens + step * tile::kDepthStep<Major::k>, accumulate || step > 0);
        arch::commit_products();
        if constexpr (kInBlocks) {
          if (i == 0) {
#pragma unroll
            for (int part = 0; part < kParts; ++part) factor[part] = scale_of(a, t, part, t.weight, depth / kDepth);
          }
        }
      }
      previous = ring.stage();
    }
    arch::wait_for_products<0>();
    if constexpr (kInBlocks) add(sums, transient, factor);
    tile::pin(sums);
    if (signals) ring.release(previous);
  }

  __device__ __forceinline__ static void write(const Fp8WeightOnlyArguments& a, int64_t at, float value) {
    if (a.float32_out)
      tile::store_float(reinterpret_cast<float*>(a.product.out_data) + at, value);
    else
      tile::store_float(reinterpret_cast<bfloat16*>(a.product.out_data) + at, value);
  }

  __device__ __forceinline__ static void store(const Fp8WeightOnlyArguments& a, const Tile& t, int half,
                                               const tile::FewRowsSum& sum) {
    float scale[kParts][2];
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int32_t column = tile::few_rows_column(t, half) + 8 * i;
        const bool scaled =
            !kInBlocks && column < a.product.columns && (t.group < a.product.experts || !a.product.expert_offsets);
        scale[part][i] = scaled ? scale_of(a, t, part, column, 0) : 1.0f;
      }
    tile::for_own_elements<kTokens>(t, half, a.product.columns, [&](int32_t row, int32_t column, int i, int value) {
      const int64_t at = row * int64_t{a.product.row_columns} + column;
      if constexpr (kParts == 2)
        write(a, at, arch::silu(sum.sum(value) * scale[0][i]) * (sum.sum(kValues + value) * scale[1][i]));
      else
        write(a, at, sum.sum(value) * scale[0][i]);
    });
  }
};

}  // namespace

#define HK_KERNEL(name, ...)                                                          \
  extern "C" __global__ void __launch_bounds__(kGroupedGemmThreads, 1)                \
      fp8_gemm_weight_only_##name(const __grid_constant__ Fp8WeightOnlyArguments a) { \
    tile::FewRowsProduct<WeightOnly<__VA_ARGS__>>::run(a, a.product);                 \
  }
#define HK_KERNELS(tokens, suffix, packed, in_blocks)     \
  HK_KERNEL(tokens##suffix, tokens, 1, packed, in_blocks) \
  HK_KERNEL(swiglu_##tokens##suffix, tokens, 2, packed, in_blocks)
HK_KERNELS(16, , false, false)
HK_KERNELS(64, , false, false)
HK_KERNELS(16, _blocks, false, true)
HK_KERNELS(64, _blocks, false, true)
HK_KERNELS(16, _packed, true, false)
HK_KERNELS(64, _packed, true, false)
HK_KERNELS(16, _packed_blocks, true, true)
HK_KERNELS(64, _packed_blocks, true, true)
#undef HK_KERNELS
#undef HK_KERNEL

}  // namespace hunyuan_kernels::kernels
