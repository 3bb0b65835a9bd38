#include "simulator/floats.h"

#include <algorithm>
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
  const uint64_t bits = bit_cast<uint64_t>(x);
  // |x| = significand * 2^(exponent - 52); a subnormal double is far below every target and only counts as not zero.
  const uint64_t significand53 = (bits & ((1ull << 52) - 1)) | (1ull << 52);
  int exponent = int(bits >> 52 & 0x7ff) - 1023;
  const int clamped = std::max(exponent, 1 - bias);  // the subnormal range shares one exponent
  const int shift = std::min(63, 52 - mantissa_bits + clamped - exponent);
  const uint64_t whole = significand53 >> shift, rest = significand53 & ((1ull << shift) - 1);
  const uint64_t half = 1ull << (shift - 1);
  exponent = clamped;
  bool up = false;
  switch (mode) {
    case Round::Nearest: up = rest > half || (rest == half && (whole & 1)); break;
    case Round::Zero: break;
    case Round::Down: up = rest > 0 && sign; break;
    case Round::Up: up = rest > 0 && !sign; break;
  }
  const uint64_t significand = whole + (up ? 1 : 0);
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
