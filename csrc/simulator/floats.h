// Conversions between binary32/64 and the narrow formats of the tensor cores.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace hunyuan_kernels::simulator {

template <typename To, typename From>
inline To bit_cast(From f) {
  static_assert(sizeof(To) == sizeof(From));
  To t;
  memcpy(&t, &f, sizeof(t));
  return t;
}

enum class Round : uint8_t { Nearest, Zero, Down, Up };

inline float half_to_float(uint16_t h) { return (float)bit_cast<_Float16>(h); }
inline uint16_t float_to_half(float f) { return bit_cast<uint16_t>((_Float16)f); }
inline float bf16_to_float(uint16_t h) { return bit_cast<float>(uint32_t(h) << 16); }
inline uint16_t float_to_bf16(float f) {
  uint32_t u = bit_cast<uint32_t>(f);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline float tf32_to_float(uint32_t u) { return bit_cast<float>(u & 0xffffe000u); }
extern const float* const kE4m3Table;
inline float e4m3_to_float(uint8_t v) { return kE4m3Table[v]; }
inline float e5m2_to_float(uint8_t v) { return half_to_float(uint16_t(v << 8)); }

// Rounds a finite or special double into a format with the given exponent and mantissa widths.
// `finite_only` selects the e4m3 convention (no infinity, S.1111.111 is NaN).
uint32_t encode_float(double x, int exponent_bits, int mantissa_bits, Round mode, bool saturate_finite,
                      bool finite_only);

inline uint8_t float_to_e4m3(double x, bool satfinite = true) {
  return (uint8_t)encode_float(x, 4, 3, Round::Nearest, satfinite, true);
}
inline uint8_t float_to_e5m2(double x, bool satfinite = true) {
  return (uint8_t)encode_float(x, 5, 2, Round::Nearest, satfinite, false);
}

// Thin value types so that arithmetic templates work on half precision.
struct Half {
  uint16_t bits;
  static double load(Half h) { return half_to_float(h.bits); }
  static Half store(double v) { return {(uint16_t)encode_float(v, 5, 10, Round::Nearest, false, false)}; }
  static Half store_float(float v) { return {float_to_half(v)}; }
};
struct Bf16 {
  uint16_t bits;
  static double load(Bf16 h) { return bf16_to_float(h.bits); }
  static Bf16 store(double v) { return {(uint16_t)encode_float(v, 8, 7, Round::Nearest, false, false)}; }
  static Bf16 store_float(float v) { return {float_to_bf16(v)}; }
};

}  // namespace hunyuan_kernels::simulator
