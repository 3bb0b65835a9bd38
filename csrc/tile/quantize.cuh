// Quantization to e4m3, as docs/numerics.md writes it:
//   scale = amax / 448, and 1 when that is below 2^-126;  q = x / scale, nearest even, saturating, NaN kept.
#pragma once
#include "tile/vector_io.cuh"

namespace hunyuan_kernels::tile {

// Bits of the magnitude of a finite value, 0 for the others; their order is that of the magnitudes.
__device__ __forceinline__ uint32_t finite_magnitude(uint32_t bits) {
  const uint32_t magnitude = bits & 0x7fffffffu;
  return magnitude < 0x7f800000u ? magnitude : 0;
}

// The largest of those of a vector.
template <typename Element>
__device__ __forceinline__ uint32_t amax_bits(const arch::Words4& v) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kElementsPerVector<Element>; ++i)
    largest = max(largest, finite_magnitude(element_bits<Element>(v, i)));
  return largest;
}

__device__ __forceinline__ float scale_of(uint32_t amax_bits) {
  const float scale = __fdiv_rn(__uint_as_float(amax_bits), 448.0f);
  return scale < 0x1p-126f ? 1.0f : scale;
}

// Elements first .. first + 3 as four bytes. The conversion drops the sign of a NaN; it is put back.
template <typename Element>
__device__ __forceinline__ uint32_t quantize4(const arch::Words4& v, int first, float scale) {
  float quotient[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) quotient[i] = __fdiv_rn(__uint_as_float(element_bits<Element>(v, first + i)), scale);
  const uint32_t bytes = arch::to_e4m3x2(quotient[0], quotient[1]) |
                         static_cast<uint32_t>(arch::to_e4m3x2(quotient[2], quotient[3])) << 16;
  const uint32_t is_nan = ((bytes & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
  const uint32_t top_bytes = __byte_perm(
      __byte_perm(element_bits<Element>(v, first), element_bits<Element>(v, first + 1), 0x0073),
      __byte_perm(element_bits<Element>(v, first + 2), element_bits<Element>(v, first + 3), 0x0073), 0x5410);
  return bytes | (is_nan & top_bytes);
}

// The first `count` elements of a vector to `to`. kWhole: all of them, and `to` is a multiple of as many bytes.
template <typename Element, bool kWhole>
__device__ __forceinline__ void store_quantized(uint8_t* to, const arch::Words4& v, float scale, int count) {
  constexpr int kPerVector = kElementsPerVector<Element>;
  uint32_t bytes[kPerVector / 4];
#pragma unroll
  for (int i = 0; i < kPerVector / 4; ++i) bytes[i] = quantize4<Element>(v, 4 * i, scale);
  if constexpr (!kWhole) {
#pragma unroll
    for (int i = 0; i < kPerVector; ++i)
      if (i < count) to[i] = static_cast<uint8_t>(bytes[i / 4] >> (i % 4 * 8));
  } else if constexpr (kPerVector == 8) {
    *reinterpret_cast<uint2*>(to) = make_uint2(bytes[0], bytes[1]);
  } else {
    *reinterpret_cast<uint32_t*>(to) = bytes[0];
  }
}

}  // namespace hunyuan_kernels::tile
