#include "simulator/floats.h"

#include <array>

namespace hunyuan_kernels::simulator {

namespace {
const std::array<float, 256> e4m3_values = [] {
  std::array<float, 256> t{};
  for (int i = 0; i < 256; ++i) {
    int e = (i >> 3) & 15, m = i & 7;
    float value = e == 0 ? std::ldexp((float)m, -9) : std::ldexp(1.0f + m / 8.0f, e - 7);
    if (e == 15 && m == 7) value = NAN;
    t[i] = (i & 0x80) ? -value : value;
  }
  return t;
}();
}  // namespace
const float* const kE4m3Table = e4m3_values.data();

uint32_t encode_float(double x, int exponent_bits, int mantissa_bits, Round mode, bool saturate_finite,
                      bool finite_only) {
  const uint32_t sign = std::signbit(x) ? 1u << (exponent_bits + mantissa_bits) : 0;
  const uint32_t exponent_max = (1u << exponent_bits) - 1;
  const uint32_t infinity = exponent_max << mantissa_bits;
  const uint32_t nan = (1u << (exponent_bits + mantissa_bits)) - 1;
  const uint32_t largest = finite_only ? nan - 1 : infinity - 1;
  if (std::isnan(x)) return nan;  // canonical NaN is all ones
  if (std::isinf(x)) return sign | (saturate_finite ? largest : finite_only ? nan : infinity);
  if (x == 0) return sign;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  double magnitude = std::fabs(x);
  int exponent;
  std::frexp(magnitude, &exponent);
  exponent -= 1;                                                    // magnitude = 1.f * 2^exponent
  if (exponent < 1 - bias) exponent = 1 - bias;                     // subnormal range
  double scaled = std::ldexp(magnitude, mantissa_bits - exponent);  // integer part is the significand
  double whole = std::floor(scaled), rest = scaled - whole;
  bool up = false;
  switch (mode) {
    case Round::Nearest: up = rest > 0.5 || (rest == 0.5 && std::fmod(whole, 2.0) == 1.0); break;
    case Round::Zero: break;
    case Round::Down: up = rest > 0 && sign; break;
    case Round::Up: up = rest > 0 && !sign; break;
  }
  uint64_t significand = (uint64_t)whole + (up ? 1 : 0);
  // The implicit bit makes adding the biased exponent work for normals, subnormals and carries.
  int64_t encoded = (int64_t(exponent + bias - 1) << mantissa_bits) + (int64_t)significand;
  if (encoded > (int64_t)largest) {
    if (saturate_finite) return sign | largest;
    bool to_infinity = mode == Round::Nearest || (mode == Round::Up && !sign) || (mode == Round::Down && sign);
    if (finite_only) return nan | sign;
    return sign | (to_infinity ? infinity : largest);
  }
  return sign | (uint32_t)encoded;
}

}  // namespace hunyuan_kernels::simulator
