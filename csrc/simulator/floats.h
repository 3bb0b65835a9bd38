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

inline float half_to_float(uint16_t h) {
  const uint32_t magnitude = uint32_t(h & 0x7fff) << 13;
  // The product moves the exponent from bias 15 to bias 127 and normalizes subnormals.
  uint32_t bits = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  if (magnitude >= 0x7c00u << 13) bits = magnitude | 0x7f800000u;
  return bit_cast<float>(bits | uint32_t(h & 0x8000) << 16);
}
inline uint16_t float_to_half(float f) {  // to nearest even
  const uint32_t u = bit_cast<uint32_t>(f), magnitude = u & 0x7fffffff;
  uint32_t h;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000)
    h = 0x7c00;
  else if (magnitude < 0x38800000)  // subnormal: the sum rounds at 2^-24
    h = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  else
    h = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  return uint16_t(h | (u >> 16 & 0x8000));
}
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
