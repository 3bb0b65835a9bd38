// Products of e4m3 operands with fused dequantization, dense or over expert-major rows. For the rows r of group e, with
// x = a_scale(r, k / 128) a[r, k] and w = b_scale(e, n, k / 128) b[e, n, k]:
//
//   rows          out[r, n] = sum_k x[r, k] w[e, n, k]; zeros for rows of no group
//   SwiGLU        out[r, i] = silu(g) u,  g = sum_k x[r, k] w[e, i, k],  u = sum_k x[r, k] w[e, I + i, k]
//
// Shapes and boxes: kernels/fp8_gemm_arguments.h. Both operands contiguous along K (e4m3 wgmma takes no other); bf16 or
// fp32 out, contiguous. Scales that are the same along K multiply the finished sums, the others the sum of each 128 of
// K. SwiGLU also to e4m3, from the fp32 values: q[r, i] = out[r, i] / s, under a given scale s or a fresh one of each
// 128 of I (tile/quantize.cuh).
//
// Who does what: as in kernels/grouped_gemm_sm90.cu. As many blocks as SMs walk over tiles of 128 rows x 256 (or 128)
// columns. Of a block,
//   warpgroup 0    warp 0 finds the tile and loads 128 x 128 of a and 256 x 128 of b for each k-block, by TMA, into a
//                  ring of 4 stages (6 with 128 columns). The other three warps do nothing.
//   warpgroups 1-2 each multiply 64 of the rows, 128 columns at a time: four m64n128k32 into 64 transient registers,
//                  then one FFMA for each of them into the sums. Tensor cores keep about 14 bits of an e4m3 sum: they
//                  never add more than 128 of K. While one warpgroup adds, the other one multiplies.
//                  Then the epilogue: scales, slices of 64 rows x 128 bytes through shared memory, out by TMA. To e4m3
//                  a tile of SwiGLU is one slice and one block of fresh scales: the four lanes that hold a row find
//                  its maximum, and eight rows' scales leave side by side (M-major).
//
//   producer  a, b --TMA--> [ stage | stage | stage | stage ] --wgmma--> transient --FFMA--> sums --> [ slice ]
//   --TMA--> out
//                      full -->                        <-- empty            ^
//                                             scales of the k-block, loaded while its products run
//
// Columns of one part of a tile begin at a multiple of 128 of N (of I): with blocks of 128 x 128 they share a scale,
// and gate and up have theirs. Ragged groups: as for bf16. Rows of a neighbour that are loaded are multiplied with
// scales of theirs, or of the last row, and not stored. Rows past the last group have depth 0 and read no scale: zeros.
//
// Limits: S, N, K < 2^31 - 512; operand rows at multiples of 16 bytes; fewer than 2^31 tiles.
#include "arch/math.cuh"
#include "kernels/fp8_gemm_arguments.h"
#include "tile/matrix_tiles.cuh"
#include "tile/quantize.cuh"
#include "tile/slices.cuh"
#include "tile/warp_specialized.cuh"

namespace hunyuan_kernels::kernels {
namespace {

using arch::Major;
using tile::bfloat16;
using tile::e4m3;
using tile::kBoxBytes;
using Tile = tile::MatrixTile;

constexpr int kLines = kGroupedGemmTileRows, kDepth = kFp8GemmTileDepth, kPart = kFp8GemmPartColumns;
constexpr int kProductDepth = 32;           // of one wgmma: 32 bytes, as many as 16 bf16 have
constexpr uint32_t kFirstSliceBarrier = 1;  // named barriers

// kInBlocks: scales of one operand or both vary along K.
template <bool kSwiglu, int kTileColumns, bool kInBlocks, typename Output>
struct Kernel {
  static constexpr int kParts = kTileColumns / kPart;
  static constexpr int kOutColumns = kSwiglu ? kPart : kTileColumns;  // gate and up make one column
  static_assert(!kSwiglu || kParts == 2);
  static constexpr bool kQuantizes = sizeof(Output) == 1;
  static_assert(!kQuantizes || kSwiglu);

  static constexpr int kPartBytes = kPart * kDepth, kBytesA = kLines * kDepth;
  static constexpr int kStageBytes = kBytesA + kParts * kPartBytes;
  static_assert(kGroupedGemmStagesBytes % kStageBytes == 0);
  using Frame = tile::WarpSpecialized<kGroupedGemmStagesBytes / kStageBytes, kStageBytes, kGroupedGemmSlicesBytes>;
  static_assert(Frame::kSharedBytes <= kGroupedGemmSharedBytes);
  using Memory = typename Frame::Memory;
  using Ring = typename Frame::Ring;
  using Tiles = tile::MatrixTiles<GroupedGemmArguments, kLines, kOutColumns, false>;

  // The first column of a part, counted within its half.
  __device__ __forceinline__ static int32_t column_of(const Tile& t, int part) {
    return kSwiglu ? t.column : t.column + part * kPart;
  }

  // ---- producer ----------------------------------------------------------------------------------------------------

  __device__ __forceinline__ static void produce(const GroupedGemmArguments& a, const Memory& memory) {
    Ring ring(memory.barriers.ring);
    Tiles tiles(a);
    const bool issues = threadIdx.x % 32 == 0;
    for (Tile t; tiles.next(t);) {
      if (!issues) continue;
      for (int32_t depth = 0; depth < t.depth_end; depth += kDepth, ring.advance()) {
        const uint32_t stage = memory.stage(ring.stage());
        ring.fill(kStageBytes);
        arch::load_box(stage, &a.a, ring.full(), depth, t.line);
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          arch::load_box(stage + kBytesA + part * kPartBytes, &a.b, ring.full(), depth,
                         column_of(t, part) + (kSwiglu ? part * a.columns : 0), t.group);
      }
    }
  }

  // ---- scales ------------------------------------------------------------------------------------------------------

  // What a thread needs for a k-block: the scales of its two rows, and of each part.
  struct Factors {
    float row[2], part[kParts];
  };

  __device__ __forceinline__ static float activation_scale(const Fp8GemmArguments& a, int32_t row, int32_t block) {
    return a.a_scale.data[min(row, a.product.rows - 1) * a.a_scale.row_stride + block * a.a_scale.block_stride];
  }
  // The first scale of the columns of a part, at a block of K: the only one, unless they are per channel.
  __device__ __forceinline__ static const float* weight_scales(const Fp8GemmArguments& a, const Tile& t, int part,
                                                               int32_t block) {
    const Fp8WeightScale& s = a.b_scale;
    const int32_t column = min(column_of(t, part), a.product.columns - 1);
    return s.data + (t.group * s.expert_stride + (kSwiglu ? part * s.half_stride : 0) +
                     (s.per_channel ? column : column / kPart * s.column_block_stride) + block * s.block_stride);
  }
  __device__ __forceinline__ static void load(const Fp8GemmArguments& a, const Tile& t, int32_t row, int32_t depth,
                                              Factors& factors) {
    if constexpr (!kInBlocks) return;
    const int32_t block = depth / kDepth;
#pragma unroll
    for (int i = 0; i < 2; ++i) factors.row[i] = a.a_scale.in_blocks ? activation_scale(a, row + 8 * i, block) : 1.0f;
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      factors.part[part] = a.b_scale.in_blocks ? *weight_scales(a, t, part, block) : 1.0f;
  }

  // ---- consumers ---------------------------------------------------------------------------------------------------

  // `row`: the first of the two rows of this thread.
  __device__ __forceinline__ static void multiply_tile(float (&sums)[kParts][kPart / 2], const Fp8GemmArguments& a,
                                                       const Tile& t, int half, int32_t row, const Memory& memory,
                                                       Ring& ring) {
    const bool signals = threadIdx.x % 32 == 0;
    if (t.line + 64 * half >= t.line_end) return ring.pass(0, t.depth_end, kDepth);
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (float& sum : sums[part]) sum = 0.0f;
    float transient[kPart / 2];
    Factors factors;
    for (int32_t depth = 0; depth < t.depth_end; depth += kDepth, ring.advance()) {
      const uint32_t stage = memory.stage(ring.uniform_stage());
      const uint64_t lines = tile::operand_descriptor<Major::k>(stage + half * kBoxBytes);
      ring.wait_until_full();
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint64_t columns = tile::operand_descriptor<Major::k>(stage + kBytesA + part * kPartBytes);
#pragma unroll
        for (float& value : transient) arch::pin(value);
        arch::fence_products();
#pragma unroll
        for (int step = 0; step < kDepth / kProductDepth; ++step)
          arch::multiply_e4m3(transient, lines + step * tile::kDepthStep<Major::k>,
                              columns + step * tile::kDepthStep<Major::k>, step > 0);
        arch::commit_products();
        if (part == 0) load(a, t, row, depth, factors);  // arrives while the tensor cores are busy
        arch::wait_for_products<0>();
#pragma unroll
        for (float& value : transient) arch::pin(value);
        if (part == kParts - 1 && signals) ring.release(ring.stage());
        if constexpr (kInBlocks) {
          const float scale[2] = {factors.row[0] * factors.part[part], factors.row[1] * factors.part[part]};
#pragma unroll
          for (int i = 0; i < kPart / 2; ++i) sums[part][i] = fmaf(transient[i], scale[i / 2 % 2], sums[part][i]);
        } else {
#pragma unroll
          for (int i = 0; i < kPart / 2; ++i) sums[part][i] += transient[i];
        }
      }
    }
  }

  // ---- epilogue ----------------------------------------------------------------------------------------------------

  // The scales that are the same along K.
  __device__ __forceinline__ static void scale_sums(float (&sums)[kParts][kPart / 2], const Fp8GemmArguments& a,
                                                    const Tile& t, int32_t row) {
    if (t.depth_end == 0) return;
    if (!kInBlocks || !a.a_scale.in_blocks) {
      const float scale[2] = {activation_scale(a, row, 0), activation_scale(a, row + 8, 0)};
#pragma unroll
      for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int i = 0; i < kPart / 2; ++i) sums[part][i] *= scale[i / 2 % 2];
    }
    if (kInBlocks && a.b_scale.in_blocks) return;
    const int32_t lane_column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const float* scales = weight_scales(a, t, part, 0);
      if (!a.b_scale.per_channel) {
        const float scale = *scales;
#pragma unroll
        for (float& sum : sums[part]) sum *= scale;
        continue;
      }
      const int32_t columns = a.product.columns - column_of(t, part) - lane_column;
#pragma unroll
      for (int j = 0; j < kPart / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float scale = 8 * j + i < columns ? scales[lane_column + 8 * j + i] : 0.0f;
          sums[part][4 * j + i] *= scale;
          sums[part][4 * j + i + 2] *= scale;
        }
        arch::pin(sums[part][4 * j]);  // registers are scarce: not all the loads at once
      }
    }
  }

  // The quotients that are rounded to e4m3, of the values of a tile's two rows of this thread; fresh scales are stored.
  __device__ __forceinline__ static void divide_by_scales(float (&values)[kPart / 2], const Fp8GemmArguments& a,
                                                          const Tile& t, int32_t row) {
    const int lane_of_row = threadIdx.x % 4;
    float scale[2];
    if (a.out_scale.given) {
      scale[0] = scale[1] = *a.out_scale.given;
    } else {
      const int32_t columns = a.product.columns - t.column - 2 * lane_of_row;  // what lies behind is another's, or none
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t largest = 0;
#pragma unroll
        for (int j = 0; j < kPart / 8; ++j)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (8 * j + i < columns)
              largest = max(largest, tile::finite_magnitude(__float_as_uint(values[4 * j + 2 * half + i])));
        largest = max(largest, arch::exchange(largest, 1));
        largest = max(largest, arch::exchange(largest, 2));
        scale[half] = tile::scale_of(largest);
      }
      const int32_t written = row + 8 * lane_of_row;
      if (lane_of_row < 2 && written < t.line_end)
        a.out_scale.data[written + t.column / kPart * a.out_scale.block_stride] = lane_of_row ? scale[1] : scale[0];
    }
#pragma unroll
    for (int i = 0; i < kPart / 2; ++i) {
      values[i] = __fdiv_rn(values[i], scale[i / 2 % 2]);
      arch::pin(values[i]);  // registers are scarce: one after the other
    }
  }

  __device__ __forceinline__ static void consume(const Fp8GemmArguments& a, const Memory& memory) {
    const int half = tile::consumer_half();
    const GroupedGemmArguments& product = a.product;
    Ring ring(memory.barriers.ring);
    Tiles tiles(product);
    tile::Slices slices(arch::shared_address(memory.scratch) + half * tile::kSliceBuffers * kBoxBytes,
                        kFirstSliceBarrier + half, threadIdx.x % 128);
    float sums[kParts][kPart / 2];
    for (Tile t; tiles.next(t);) {
      const int32_t line = t.line + 64 * half;
      const int32_t row = line + static_cast<int32_t>(threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4);
      multiply_tile(sums, a, t, half, row, memory, ring);
      if (line >= t.line_end) continue;
      scale_sums(sums, a, t, row);
      if constexpr (kSwiglu) {
#pragma unroll
        for (int i = 0; i < kPart / 2; ++i) {
          sums[0][i] = arch::silu(sums[0][i]) * sums[1][i];
          arch::pin(sums[0][i]);
        }
        if constexpr (kQuantizes) divide_by_scales(sums[0], a, t, row);
      }
      slices.template store_rows<Output, kOutColumns>(
          {&product.out, product.out_data, product.row_columns, 1, 0}, t.column, product.columns, line,
          min(t.line_end - line, 64), [&](int j, int i) { return sums[j / (kPart / 8)][4 * (j % (kPart / 8)) + i]; });
    }
    slices.finish();
  }

  __device__ __forceinline__ static void run(const Fp8GemmArguments& a) {
    const GroupedGemmArguments& product = a.product;
    Frame::template run<240, false>([&](const Memory& memory) { produce(product, memory); },
                                    [&](const Memory& memory) { consume(a, memory); }, product.a, product.b,
                                    product.out);
  }
};

}  // namespace

#define HK_KERNEL(name, ...)                                           \
  extern "C" __global__ void __launch_bounds__(kGroupedGemmThreads, 1) \
      fp8_gemm_##name(const __grid_constant__ Fp8GemmArguments a) {    \
    Kernel<__VA_ARGS__>::run(a);                                       \
  }
HK_KERNEL(rows_256_bfloat16, false, 256, false, bfloat16)
HK_KERNEL(rows_256_float32, false, 256, false, float)
HK_KERNEL(rows_256_bfloat16_blocks, false, 256, true, bfloat16)
HK_KERNEL(rows_256_float32_blocks, false, 256, true, float)
HK_KERNEL(rows_128_bfloat16, false, 128, false, bfloat16)
HK_KERNEL(rows_128_float32, false, 128, false, float)
HK_KERNEL(rows_128_bfloat16_blocks, false, 128, true, bfloat16)
HK_KERNEL(rows_128_float32_blocks, false, 128, true, float)
HK_KERNEL(swiglu_bfloat16, true, 256, false, bfloat16)
HK_KERNEL(swiglu_float32, true, 256, false, float)
HK_KERNEL(swiglu_bfloat16_blocks, true, 256, true, bfloat16)
HK_KERNEL(swiglu_float32_blocks, true, 256, true, float)
HK_KERNEL(swiglu_e4m3, true, 256, false, e4m3)
HK_KERNEL(swiglu_e4m3_blocks, true, 256, true, e4m3)
#undef HK_KERNEL

}  // namespace hunyuan_kernels::kernels
