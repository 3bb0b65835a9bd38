// Element types and their conversions, bit for bit as PyTorch's. Host side, no torch. `static` for the reason given in
// integer_math.h.
#pragma once
#include <cstdint>
#include <cstring>

namespace hunyuan_kernels {

// nf4: packed weights alone, see nf4.h; their strides count bytes.
enum class DType : uint8_t { float32, bfloat16, float8_e4m3fn, int32, int64, nf4 };

using bfloat16 = uint16_t;  // storage only
using float8_e4m3fn =
    uint8_t;  // storage only: 4 exponent bits (bias 7), 3 mantissa bits, no infinity, NaN = S.1111.111

static inline int64_t element_size(DType dtype) {
  switch (dtype) {
    case DType::nf4:
    case DType::float8_e4m3fn: return 1;
    case DType::bfloat16: return 2;
    case DType::float32:
    case DType::int32: return 4;
    case DType::int64: return 8;
  }
  return 0;
}

static inline uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

static inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline float to_float(bfloat16 value) { return float_from_bits(uint32_t{value} << 16); }

// Round to nearest even; NaN becomes the canonical 0x7fc0 with its sign dropped, as c10::BFloat16 does.
static inline bfloat16 to_bfloat16(float value) {
  uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return static_cast<bfloat16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace hunyuan_kernels
