// Weights in e4m3 on their way from shared memory to the registers of wgmma's A side, where they are bf16. Lines are
// those of a tile of 128 lines x 128 of K, 64 of them a warpgroup's; 64 of K are read at a time.
//
//   as they are   rows of 128 bytes as TMA's 128-byte swizzle leaves them: pairs of bytes by themselves, 8 rows x 8
//                 bytes for each load of a warp, no bank conflicts
//   packed        for each 16 lines and 32 of K 512 bytes, 16 of lane l at 16 l: what the lane multiplies of two
//                 products, in the order of its registers. Panels of 16 lines one after the other, each of 4 x 512
//                 bytes
#pragma once
#include <type_traits>

#include "arch/convert.cuh"
#include "arch/shared.cuh"
#include "arch/wgmma.cuh"
#include "tile/operand.cuh"

namespace hunyuan_kernels::tile {

constexpr int kWeightsBytes = 128 * 128;            // of a tile
constexpr int kFragmentSteps = 64 / kProductDepth;  // products of 64 of K

// What a thread holds of 64 of K: for each product four pairs, of the registers of its A fragment.
template <bool kPacked>
class E4m3Weights {
 public:
  // Of the warpgroup's lines, number `half` of the tile at `weights`, the 64 of K number `quarter`.
  __device__ __forceinline__ void load(uint32_t weights, int half, int quarter) {
    const uint32_t warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
    if constexpr (kPacked) {
      const uint32_t panel = weights + (4 * half + warp) * 2048 + quarter * 1024 + lane * 16;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const arch::Words4 words = arch::load_shared(panel + 512 * i);
#pragma unroll
        for (int j = 0; j < 4; ++j) raw_[4 * i + j] = words.word[j];
      }
    } else {
      const int row = static_cast<int>(64 * half + 16 * warp + lane / 4);
      const uint32_t first = swizzled(weights, row, 0) + lane % 4 * 2;
#pragma unroll
      for (int step = 0; step < kFragmentSteps; ++step) {
        const uint32_t chunk = first ^ (kFragmentSteps * quarter + step) << 4;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          raw_[4 * step + i] = arch::load_shared_16(chunk + i % 2 * 8 * kSwizzledRowBytes + i / 2 * 8);
      }
    }
  }
  // Nothing that is made of the weights moves before this point.
  __device__ __forceinline__ void pin() {
#pragma unroll
    for (auto& raw : raw_) arch::pin(raw);
  }
  __device__ __forceinline__ void expand(uint32_t (&fragments)[kFragmentSteps][4]) const {
#pragma unroll
    for (int i = 0; i < 4 * kFragmentSteps; ++i) fragments[i / 4][i % 4] = arch::e4m3x2_to_bfloat16x2(pair(i));
  }

 private:
  __device__ __forceinline__ uint16_t pair(int i) const {
    if constexpr (kPacked)
      return static_cast<uint16_t>(raw_[i / 2] >> (16 * (i % 2)));
    else
      return raw_[i];
  }
  using Raw = std::conditional_t<kPacked, uint32_t, uint16_t>;
  Raw raw_[kPacked ? 8 : 16];
};

}  // namespace hunyuan_kernels::tile
