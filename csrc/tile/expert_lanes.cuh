// The values of one token's experts, spread over a group of neighbouring lanes: softmax and choice of the largest.
#pragma once
#include "arch/warp.cuh"
#include "tile/vector_io.cuh"

namespace hunyuan_kernels::tile {

// Order of fp32 values as unsigned integers, above 0: NaN counts as minus infinity, and -0 as 0.
__device__ __forceinline__ uint32_t ordered(float value) {
  if (value != value) value = -__int_as_float(0x7f800000);
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ float load_float(const float* from) { return *from; }
__device__ __forceinline__ float load_float(const bfloat16* from) { return __uint_as_float(uint32_t{*from} << 16); }
__device__ __forceinline__ void store_float(float* to, float value) { *to = value; }
__device__ __forceinline__ void store_float(bfloat16* to, float value) {
  *to = static_cast<bfloat16>(arch::to_bfloat16x2(value, 0.0f));
}

// `lanes` is a power of two, at most 32, with experts <= lanes * kSlots. Lane g holds 4 neighbouring experts of every
// 4 * lanes. All lanes of a warp call every function; those without a token pass valid = false.
template <typename Element, int kSlots>
struct ExpertLanes {
  static_assert(kSlots % 4 == 0);
  const int experts, lanes, lane;
  float value[kSlots];

  __device__ ExpertLanes(int experts_, int lanes_)
      : experts(experts_), lanes(lanes_), lane(static_cast<int>(threadIdx.x) & (lanes_ - 1)) {}

  __device__ __forceinline__ int expert(int slot) const { return (slot / 4 * lanes + lane) * 4 + slot % 4; }

  __device__ __forceinline__ void load(const Element* row, bool valid, bool vectors) {
#pragma unroll
    for (int quad = 0; quad < kSlots; quad += 4) {
      const int first = expert(quad);
      if (vectors && valid && first < experts) {
        if constexpr (sizeof(Element) == 2) {
          const uint2 words = *reinterpret_cast<const uint2*>(row + first);
          value[quad] = __uint_as_float(words.x << 16), value[quad + 1] = __uint_as_float(words.x & 0xffff0000u);
          value[quad + 2] = __uint_as_float(words.y << 16), value[quad + 3] = __uint_as_float(words.y & 0xffff0000u);
        } else {
          const float4 words = *reinterpret_cast<const float4*>(row + first);
          value[quad] = words.x, value[quad + 1] = words.y, value[quad + 2] = words.z, value[quad + 3] = words.w;
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) value[quad + i] = valid && first + i < experts ? load_float(row + first + i) : 0.0f;
      }
    }
  }
  __device__ __forceinline__ void store(Element* row, bool vectors) const {
#pragma unroll
    for (int quad = 0; quad < kSlots; quad += 4) {
      const int first = expert(quad);
      if (vectors && first < experts) {
        if constexpr (sizeof(Element) == 2)
          *reinterpret_cast<uint2*>(row + first) = make_uint2(arch::to_bfloat16x2(value[quad], value[quad + 1]),
                                                              arch::to_bfloat16x2(value[quad + 2], value[quad + 3]));
        else
          *reinterpret_cast<float4*>(row + first) =
              make_float4(value[quad], value[quad + 1], value[quad + 2], value[quad + 3]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (first + i < experts) store_float(row + first + i, value[quad + i]);
      }
    }
  }

  __device__ __forceinline__ float group_sum(float sum) const {
    for (int mask = lanes / 2; mask > 0; mask /= 2) sum += __uint_as_float(arch::exchange(__float_as_uint(sum), mask));
    return sum;
  }

  // Largest value (NaN counts as minus infinity), in every lane.
  __device__ __forceinline__ float maximum() const {
    uint32_t largest = 0;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot)
      if (expert(slot) < experts) largest = max(largest, ordered(value[slot]));
    for (int mask = lanes / 2; mask > 0; mask /= 2) largest = max(largest, arch::exchange(largest, mask));
    return from_ordered(largest);
  }
  // Sum of exp(value - maximum), in every lane.
  __device__ __forceinline__ float sum_of_exponentials(float maximum) const {
    float sum = 0.0f;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot)
      if (expert(slot) < experts) sum += expf(value[slot] - maximum);
    return group_sum(sum);
  }
};

// Takes the largest values of an ExpertLanes one after the other, larger first, ties to the lower expert.
template <typename Element, int kSlots>
struct LargestFirst {
  const ExpertLanes<Element, kSlots>& of;
  uint32_t key[kSlots];  // 0: taken, or no expert

  __device__ explicit LargestFirst(const ExpertLanes<Element, kSlots>& lanes) : of(lanes) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) key[slot] = of.expert(slot) < of.experts ? ordered(of.value[slot]) : 0;
  }

  // The expert; `value` is what it counts as. The same in every lane of the group.
  __device__ __forceinline__ int take(float& value) {
    uint32_t best = 0, id = 0;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot)
      if (key[slot] > best) best = key[slot], id = of.expert(slot);
    for (int mask = of.lanes / 2; mask > 0; mask /= 2) {
      const uint32_t other = arch::exchange(best, mask), other_id = arch::exchange(id, mask);
      if (other > best || (other == best && other_id < id)) best = other, id = other_id;
    }
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot)
      if (of.expert(slot) == static_cast<int>(id)) key[slot] = 0;
    value = from_ordered(best);
    return static_cast<int>(id);
  }
};

}  // namespace hunyuan_kernels::tile
