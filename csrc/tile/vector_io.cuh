// 16-byte vectors of bf16 or fp32 elements, and access to the elements as fp32.
#pragma once
#include "arch/convert.cuh"
#include "arch/memory.cuh"

namespace hunyuan_kernels::tile {

// Storage only, as in common/dtype.h.
using bfloat16 = uint16_t;
using e4m3 = uint8_t;

template <typename Element>
constexpr int kElementsPerVector = 16 / sizeof(Element);

// The first `count` elements from an address that may be misaligned, one by one; the rest of the vector is zero.
template <typename Element>
__device__ __forceinline__ arch::Words4 load_elements(const Element* from, int count) {
  arch::Words4 v = {};
#pragma unroll
  for (int i = 0; i < kElementsPerVector<Element>; ++i) {
    if (i >= count) break;
    if constexpr (sizeof(Element) == 2)
      v.word[i / 2] |= uint32_t{from[i]} << (i % 2 * 16);
    else
      v.word[i] = __float_as_uint(from[i]);
  }
  return v;
}

// The bits of element i as fp32.
template <typename Element>
__device__ __forceinline__ uint32_t element_bits(const arch::Words4& v, int i) {
  if constexpr (sizeof(Element) == 2)
    return i % 2 ? v.word[i / 2] & 0xffff0000u : v.word[i / 2] << 16;
  else
    return v.word[i];
}

// The first `count` elements to an address that may be misaligned, one by one.
template <typename Element>
__device__ __forceinline__ void store_elements(Element* to, const arch::Words4& v, int count) {
#pragma unroll
  for (int i = 0; i < kElementsPerVector<Element>; ++i) {
    if (i >= count) break;
    if constexpr (sizeof(Element) == 2)
      to[i] = static_cast<Element>(v.word[i / 2] >> (i % 2 * 16));
    else
      to[i] = __uint_as_float(v.word[i]);
  }
}

// fp32 values as elements, rounded to nearest even.
template <typename Element>
__device__ __forceinline__ arch::Words4 pack(const float (&values)[kElementsPerVector<Element>]) {
  arch::Words4 v;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if constexpr (sizeof(Element) == 2)
      v.word[i] = arch::to_bfloat16x2(values[2 * i], values[2 * i + 1]);
    else
      v.word[i] = __float_as_uint(values[i]);
  return v;
}

}  // namespace hunyuan_kernels::tile
