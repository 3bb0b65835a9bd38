// Products over expert-major rows: grouped GEMM, its two gradients, and grouped SwiGLU. For the rows r of group e:
//
//   rows                   out[r, n] = sum_k a[r, k] b[e, n, k]; zeros for rows of no group
//   SwiGLU                 out[r, i] = silu(g) u,  g = sum_k a[r, k] b[e, i, k],  u = sum_k a[r, k] b[e, I + i, k];
//                          with the pre-activation: also g and u, rounded
//   weight gradient        out[e, n, k] (+)= sum_r grad_out[r, n] a[r, k]
//
// The input gradient is `rows` with b across: b[e, n, k] contiguous along n. bf16 operands, fp32 sums in order of
// depth, bf16 or fp32 out. Shapes and boxes: kernels/grouped_gemm_arguments.h. Strides of operands are free as far as
// TMA takes them (multiples of 16 bytes); out is contiguous.
//
// Who does what: as many blocks as SMs, one on each, walk over tiles of 128 rows x 256 (or 128) columns. Of a block,
//   warpgroup 0    warp 0 finds the tile and loads 128 x 64 of a and 256 x 64 of b for each k-block, by TMA, into
//                  a ring of 4 stages (6 with 128 columns). The other three warps do nothing.
//   warpgroups 1-2 each multiply 64 of the rows: m64n256k16, 128 registers of sums per thread; one k-block's products
//                  are in flight while the next one's are issued, and its stage is released when they are done.
//                  Then the epilogue: slices of 64 rows x 128 bytes through shared memory, out by TMA.
//
//            expert_offsets -> tile            expert_offsets -> tile (the same, without a word between the warps)
//   producer  a, b --TMA--> [ stage | stage | stage | stage ] --wgmma--> registers --> [ slice | slice ] --TMA--> out
//                      full -->                        <-- empty
//   The producer runs ahead: it fills the stages with the next tile while the epilogue runs.
//
// Ragged groups: a tile belongs to one group. Rows past the group's end are loaded (they are the next group's, or zeros
// past the tensor), multiplied, and not stored: the 64 rows of a warpgroup leave by TMA when they all belong to the
// group, and by 16-byte stores of the rows that do otherwise. A warpgroup without rows does not multiply.
//   Rows past the last group are one more group of depth 0: its sums are zeros. So are those of K = 0.
//
// Weight gradient: depth is the group's rows, in both operands. What the last k-block loads past the group's end may be
// anything (0 x NaN is NaN): it is zeroed in shared memory, up to the 16 rows of the last product that is issued. Lines
// and columns end with the tensor, where TMA stores end by themselves.
//
// Multicast (..._multicast): a cluster of two blocks takes two tiles side by side, of the same rows. Each loads its own
// columns of b, and half of the rows of a for both: a stage is filled by two producers, and by none of them before the
// consumers of both blocks have released it. The second tile may lie past the last column: its block loads its half of
// a, multiplies nothing and stores nothing.
//
// Limits: S, N, K < 2^31 - 512; operand rows at multiples of 16 bytes; fewer than 2^31 tiles.
#include "arch/math.cuh"
#include "kernels/grouped_gemm_arguments.h"
#include "tile/matrix_tiles.cuh"
#include "tile/slices.cuh"
#include "tile/vector_io.cuh"
#include "tile/warp_specialized.cuh"

namespace hunyuan_kernels::kernels {
namespace {

using arch::Major;
using tile::bfloat16;
using tile::kBoxBytes;
using tile::kDepth;
using tile::kProductDepth;

enum class Form { rows, swiglu, swiglu_preactivation, weight_gradient };

constexpr int kLines = kGroupedGemmTileRows;
constexpr uint32_t kConsumersBarrier = 1, kFirstSliceBarrier = 2;  // named barriers

using Tile = tile::MatrixTile;

template <Form kForm_, int kTileColumns_, Major kMajorB_, typename Output_, int kBlocks = 1>
struct Kernel {
  using Output = Output_;
  static constexpr Form kForm = kForm_;
  static constexpr bool kWeightGradient = kForm == Form::weight_gradient;
  static constexpr bool kSwiglu = kForm == Form::swiglu || kForm == Form::swiglu_preactivation;
  static constexpr Major kMajorA = kWeightGradient ? Major::mn : Major::k, kMajorB = kMajorB_;
  static constexpr int kTileColumns = kTileColumns_;                             // lines of b
  static constexpr int kOutColumns = kSwiglu ? kTileColumns / 2 : kTileColumns;  // gate and up make one column
  static_assert(!kSwiglu || kOutColumns == kGroupedGemmSwigluColumns);

  static constexpr int kBytesA = kLines * kDepth * 2, kStageBytes = kBytesA + kTileColumns * kDepth * 2;
  static_assert(kGroupedGemmStagesBytes % kStageBytes == 0);
  using Frame = tile::WarpSpecialized<kGroupedGemmStagesBytes / kStageBytes, kStageBytes, kGroupedGemmSlicesBytes,
                                      tile::NoMoreBarriers, kBlocks>;
  static_assert(Frame::kSharedBytes <= kGroupedGemmSharedBytes);
  using Memory = typename Frame::Memory;
  using Ring = typename Frame::Ring;
  using Tiles = tile::MatrixTiles<GroupedGemmArguments, kLines, kOutColumns, kWeightGradient, kBlocks>;

  // ---- producer ----------------------------------------------------------------------------------------------------

  // Whether there is anything to multiply and to store: not in a cluster's tile past the last column.
  __device__ __forceinline__ static bool has_columns(const GroupedGemmArguments& a, const Tile& t) {
    return kBlocks == 1 || t.column < a.columns;
  }

  __device__ __forceinline__ static void load_a(const GroupedGemmArguments& a, const Tile& t, int32_t depth,
                                                uint32_t stage, uint64_t* full) {
    if constexpr (kBlocks > 1) {
      static_assert(kMajorA == Major::k && kBlocks * 64 == kLines);
      const uint32_t rank = arch::cluster_rank();
      constexpr uint16_t kEveryBlock = (1 << kBlocks) - 1;
      arch::load_box_multicast(stage + rank * kBoxBytes, &a.a, full, depth, t.line + 64 * rank, kEveryBlock);
    } else if constexpr (kMajorA == Major::k) {
      arch::load_box(stage, &a.a, full, depth, t.line);
    } else {
#pragma unroll
      for (int box = 0; box < kLines / 64; ++box)
        arch::load_box(stage + box * kBoxBytes, &a.a, full, t.line + 64 * box, depth);
    }
  }
  __device__ __forceinline__ static void load_b(const GroupedGemmArguments& a, const Tile& t, int32_t depth,
                                                uint32_t stage, uint64_t* full) {
    constexpr int kBoxLines = kMajorB == Major::k ? 128 : 64, kHalf = kSwiglu ? kTileColumns / 2 : kTileColumns;
#pragma unroll
    for (int line = 0; line < kTileColumns; line += kBoxLines) {
      const int32_t at = t.column + line % kHalf + line / kHalf * a.columns;  // up lies behind all of gate
      const uint32_t to = stage + kBytesA + line * kDepth * 2;
      if constexpr (kMajorB == Major::k)
        arch::load_box(to, &a.b, full, depth, at, t.group);
      else
        arch::load_box(to, &a.b, full, at, depth, kWeightGradient ? 0 : t.group);
    }
  }

  __device__ __forceinline__ static void produce(const GroupedGemmArguments& a, const Memory& memory) {
    Ring ring(memory.barriers.ring);
    Tiles tiles(a);
    const bool issues = threadIdx.x % 32 == 0;
    for (Tile t; tiles.next(t);) {
      if (!issues) continue;
      for (int32_t depth = t.depth; depth < t.depth_end; depth += kDepth, ring.advance()) {
        const bool columns = has_columns(a, t);
        ring.fill(columns ? kStageBytes : kBytesA);
        load_a(a, t, depth, memory.stage(ring.stage()), ring.full());
        if (columns) load_b(a, t, depth, memory.stage(ring.stage()), ring.full());
      }
    }
  }

  // ---- consumers ---------------------------------------------------------------------------------------------------

  // Rows `valid` and on of every box of a stage, up to the end of the last product, as zeros.
  __device__ __forceinline__ static void zero_past_end(uint32_t stage, int valid) {
    const int last = (valid + kProductDepth - 1) / kProductDepth * kProductDepth;
    if (last == valid) return;
    const int thread = threadIdx.x - 128, chunk = thread % 8;
    for (int box = thread / 8; box < kStageBytes / kBoxBytes; box += 256 / 8)
      for (int row = valid; row < last; ++row)
        arch::store_shared(stage + box * kBoxBytes + row * tile::kSwizzledRowBytes + 16 * chunk, arch::Words4{});
    arch::fence_async_shared();
    arch::synchronize(kConsumersBarrier, 256);
  }

  // Products of the depths first_step * kProductDepth and on of a stage.
  template <int kSteps>
  __device__ __forceinline__ static void multiply(float (&sums)[kTileColumns / 2], uint32_t stage, int half,
                                                  bool accumulate, int first_step = 0) {
    const uint64_t a = tile::operand_descriptor<kMajorA>(stage + half * kBoxBytes);
    const uint64_t b = tile::operand_descriptor<kMajorB>(stage + kBytesA);
    arch::fence_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      arch::multiply<kMajorA, kMajorB>(sums, a + (first_step + step) * tile::kDepthStep<kMajorA>,
                                       b + (first_step + step) * tile::kDepthStep<kMajorB>, accumulate || step > 0);
  }

  __device__ __forceinline__ static void multiply_tile(float (&sums)[kTileColumns / 2], const Tile& t, int half,
                                                       const Memory& memory, Ring& ring) {
    const bool signals = threadIdx.x % 32 == 0;
    if (!kWeightGradient && t.line + 64 * half >= t.line_end) return ring.pass(t.depth, t.depth_end, kDepth);
    uint32_t in_flight = 0;  // the stage whose products were issued last
    if (t.depth >= t.depth_end) {
#pragma unroll
      for (float& sum : sums) sum = 0.0f;
    }
#pragma unroll
    for (float& sum : sums) arch::pin(sum);
    int32_t depth = t.depth;
    constexpr int kWhole = kWeightGradient ? kDepth : 1;  // elsewhere depths past the end are zeros
    for (; depth + kWhole <= t.depth_end; depth += kDepth, ring.advance()) {
      const uint32_t stage = memory.stage(ring.uniform_stage());
      ring.wait_until_full();
      multiply<kDepth / kProductDepth>(sums, stage, half, depth > t.depth);
      arch::commit_products();
      arch::wait_for_products<1>();
      if (signals && depth > t.depth) ring.release(in_flight);
      in_flight = ring.stage();
    }
    arch::wait_for_products<0>();
#pragma unroll
    for (float& sum : sums) arch::pin(sum);
    if (signals && depth > t.depth) ring.release(in_flight);
    if (!kWeightGradient || depth >= t.depth_end) return;
    // The end of a group, product by product.
    const int valid = t.depth_end - depth;
    const uint32_t stage = memory.stage(ring.stage());
    ring.wait_until_full();
    zero_past_end(stage, valid);
    for (int step = 0; step * kProductDepth < valid; ++step) {
      multiply<1>(sums, stage, half, depth > t.depth || step > 0, step);
      arch::commit_products();
      arch::wait_for_products<0>();
#pragma unroll
      for (float& sum : sums) arch::pin(sum);
    }
    if (signals) ring.release(ring.stage());
    ring.advance();
  }

  // ---- epilogue ----------------------------------------------------------------------------------------------------

  // Sends the 64 lines of this warpgroup, kOutColumns wide. value(8 columns, i): what the thread holds of them.
  // `part`: 0, or 1 for the up half of the pre-activation.
  template <typename Value>
  __device__ __forceinline__ static void store(const GroupedGemmArguments& a, const TensorMap& map, char* data,
                                               int32_t parts, int32_t part, const Tile& t, int half,
                                               tile::Slices& slices, Value&& value) {
    const int32_t line = t.line + 64 * half, lines = min(t.line_end - line, 64);
    if constexpr (kWeightGradient) {
      slices.template store_columns<Output, kOutColumns>(t.column, a.columns, value,
                                                         [&](uint32_t buffer, int32_t column) {
                                                           if (threadIdx.x % 128 != 0) return;
                                                           if (a.accumulate)
                                                             arch::add_box(&map, buffer, column, line, t.group);
                                                           else
                                                             arch::store_box(&map, buffer, column, line, t.group);
                                                         });
    } else {
      slices.template store_rows<Output, kOutColumns>({&map, data, a.row_columns, parts, part}, t.column, a.columns,
                                                      line, lines, value);
    }
  }

  __device__ __forceinline__ static void consume(const GroupedGemmArguments& a, const Memory& memory) {
    const int half = tile::consumer_half();
    Ring ring(memory.barriers.ring);
    Tiles tiles(a);
    tile::Slices slices(arch::shared_address(memory.scratch) + half * tile::kSliceBuffers * kBoxBytes,
                        kFirstSliceBarrier + half, threadIdx.x % 128);
    float sums[kTileColumns / 2];
    for (Tile t; tiles.next(t);) {
      if (!has_columns(a, t)) {
        ring.pass(t.depth, t.depth_end, kDepth);
        continue;
      }
      multiply_tile(sums, t, half, memory, ring);
      if (t.line + 64 * half >= t.line_end) continue;
      if (kWeightGradient && a.accumulate && t.depth >= t.depth_end) continue;
      if constexpr (kSwiglu) {
        constexpr int kUp = kTileColumns / 4;  // where a thread's sums of up begin
        if constexpr (kForm == Form::swiglu_preactivation) {
          store(a, a.preactivation, a.preactivation_data, 2, 0, t, half, slices,
                [&](int j, int i) { return sums[4 * j + i]; });
          store(a, a.preactivation, a.preactivation_data, 2, 1, t, half, slices,
                [&](int j, int i) { return sums[kUp + 4 * j + i]; });
        }
        store(a, a.out, a.out_data, 1, 0, t, half, slices,
              [&](int j, int i) { return arch::silu(sums[4 * j + i]) * sums[kUp + 4 * j + i]; });
      } else {
        store(a, a.out, a.out_data, 1, 0, t, half, slices, [&](int j, int i) { return sums[4 * j + i]; });
      }
    }
    slices.finish();
  }

  __device__ __forceinline__ static void run(const GroupedGemmArguments& a) {
    Frame::template run<232, false>([&](const Memory& memory) { produce(a, memory); },
                                    [&](const Memory& memory) { consume(a, memory); }, a.a, a.b, a.out);
  }
};

}  // namespace

#define HK_KERNEL(name, ...)                                                \
  extern "C" __global__ void __launch_bounds__(kGroupedGemmThreads, 1)      \
      grouped_gemm_##name(const __grid_constant__ GroupedGemmArguments a) { \
    Kernel<__VA_ARGS__>::run(a);                                            \
  }
HK_KERNEL(rows_256_bfloat16, Form::rows, 256, Major::k, bfloat16)
HK_KERNEL(rows_256_float32, Form::rows, 256, Major::k, float)
HK_KERNEL(rows_128_bfloat16, Form::rows, 128, Major::k, bfloat16)
HK_KERNEL(rows_128_float32, Form::rows, 128, Major::k, float)
HK_KERNEL(rows_256_bfloat16_across, Form::rows, 256, Major::mn, bfloat16)
HK_KERNEL(rows_256_float32_across, Form::rows, 256, Major::mn, float)
HK_KERNEL(rows_128_bfloat16_across, Form::rows, 128, Major::mn, bfloat16)
HK_KERNEL(rows_128_float32_across, Form::rows, 128, Major::mn, float)
HK_KERNEL(swiglu, Form::swiglu, 256, Major::k, bfloat16)
HK_KERNEL(swiglu_across, Form::swiglu, 256, Major::mn, bfloat16)
HK_KERNEL(swiglu_preactivation, Form::swiglu_preactivation, 256, Major::k, bfloat16)
HK_KERNEL(swiglu_preactivation_across, Form::swiglu_preactivation, 256, Major::mn, bfloat16)
HK_KERNEL(rows_256_bfloat16_multicast, Form::rows, 256, Major::k, bfloat16, 2)
HK_KERNEL(rows_256_bfloat16_across_multicast, Form::rows, 256, Major::mn, bfloat16, 2)
HK_KERNEL(swiglu_multicast, Form::swiglu, 256, Major::k, bfloat16, 2)
HK_KERNEL(swiglu_preactivation_multicast, Form::swiglu_preactivation, 256, Major::k, bfloat16, 2)
HK_KERNEL(wgrad_bfloat16, Form::weight_gradient, 256, Major::mn, bfloat16)
HK_KERNEL(wgrad_float32, Form::weight_gradient, 256, Major::mn, float)
#undef HK_KERNEL

}  // namespace hunyuan_kernels::kernels
