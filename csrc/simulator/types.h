// Scalar types of PTX and their sizes.
#pragma once
#include <cstdint>
#include <string_view>

namespace hunyuan_kernels::simulator {

enum class ScalarType : uint8_t {
  None,
  Pred,
  B8,
  B16,
  B32,
  B64,
  B128,
  U8,
  U16,
  U32,
  U64,
  S8,
  S16,
  S32,
  S64,
  F16,
  F16x2,
  BF16,
  BF16x2,
  TF32,
  F32,
  F64,
  E4M3,
  E5M2,
  E4M3x2,
  E5M2x2,
  U16x2,
  S16x2,
  U8x4,
  S8x4,
};

ScalarType parse_scalar_type(std::string_view text);  // "f32" -> F32, unknown -> None
uint32_t size_of(ScalarType type);                    // bytes
bool is_signed(ScalarType type);
bool is_float(ScalarType type);

enum class Space : uint8_t { None, Register, Global, Shared, SharedCluster, Local, Param, Const, Generic };

constexpr uint32_t kWarpSize = 32;
constexpr uint32_t kFullMask = 0xffffffffu;

inline int first_lane(uint32_t mask) { return __builtin_ctz(mask); }

// The lanes of a mask, for range-based loops: for (int lane : Lanes(mask)).
class Lanes {
 public:
  explicit Lanes(uint32_t mask) : mask_(mask) {}
  struct Iterator {
    uint32_t rest;
    int operator*() const { return first_lane(rest); }
    void operator++() { rest &= rest - 1; }
    bool operator!=(Iterator other) const { return rest != other.rest; }
  };
  Iterator begin() const { return {mask_}; }
  Iterator end() const { return {0}; }

 private:
  uint32_t mask_;
};

}  // namespace hunyuan_kernels::simulator
