// Element decoding shared by mma.sync and wgmma.
#pragma once
#include <cstdint>

#include "simulator/floats.h"
#include "simulator/types.h"

namespace hunyuan_kernels::simulator {

// Decodes `count` packed elements into float or int32 values.
template <typename T>
inline void decode_elements(const uint8_t* p, uint32_t count, ScalarType type, T* out) {
  switch (type) {
    case ScalarType::BF16:
      for (uint32_t i = 0; i < count; ++i) out[i] = (T)bf16_to_float(((const uint16_t*)p)[i]);
      break;
    case ScalarType::F16:
      for (uint32_t i = 0; i < count; ++i) out[i] = (T)half_to_float(((const uint16_t*)p)[i]);
      break;
    case ScalarType::TF32:
      for (uint32_t i = 0; i < count; ++i) out[i] = (T)tf32_to_float(((const uint32_t*)p)[i]);
      break;
    case ScalarType::E4M3:
      for (uint32_t i = 0; i < count; ++i) out[i] = (T)e4m3_to_float(p[i]);
      break;
    case ScalarType::E5M2:
      for (uint32_t i = 0; i < count; ++i) out[i] = (T)e5m2_to_float(p[i]);
      break;
    case ScalarType::S8:
      for (uint32_t i = 0; i < count; ++i) out[i] = (T)(int8_t)p[i];
      break;
    default:
      for (uint32_t i = 0; i < count; ++i) out[i] = (T)p[i];
      break;  // u8
  }
}

// A fragment of a 16 x k tile in registers [register][lane] -> out[row * k + depth].
template <typename T>
inline void decode_a_fragment(const uint32_t* registers, ScalarType type, uint32_t k, T* out) {
  const uint32_t per_register = 4 / size_of(type), count = 16 * k / (32 * per_register);
  for (uint32_t i = 0; i < count; ++i)
    for (uint32_t lane = 0; lane < 32; ++lane) {
      T values[4];
      decode_elements((const uint8_t*)&registers[i * 32 + lane], per_register, type, values);
      const uint32_t row = lane / 4 + 8 * (i & 1), depth = (i >> 1) * 4 * per_register + (lane % 4) * per_register;
      for (uint32_t e = 0; e < per_register; ++e) out[row * k + depth + e] = values[e];
    }
}

// Dot product with products and accumulator aligned to the largest exponent and truncated to `bits`
// fraction bits, the way Hopper's FP8 tensor core accumulates. at: [k][16], b: [column][k].
template <typename T>
inline float limited_dot(float acc, const T* at, const T* b, uint32_t row, uint32_t column, uint32_t k, uint32_t bits) {
  double terms[33];
  int largest = -10000;
  for (uint32_t i = 0; i <= k; ++i) {
    terms[i] = i < k ? (double)at[i * 16 + row] * (double)b[column * k + i] : (double)acc;
    if (terms[i] != 0) {
      int e;
      std::frexp(terms[i], &e);
      if (e > largest) largest = e;
    }
  }
  if (largest == -10000) return 0;
  double sum = 0;
  for (uint32_t i = 0; i <= k; ++i) sum += std::trunc(std::ldexp(terms[i], (int)bits - largest));
  return (float)std::ldexp(sum, largest - (int)bits);
}

}  // namespace hunyuan_kernels::simulator
