#include "simulator/types.h"

#include <unordered_map>

namespace hunyuan_kernels::simulator {

ScalarType parse_scalar_type(std::string_view text) {
  using T = ScalarType;
  static const std::unordered_map<std::string_view, T> table = {
      {"pred", T::Pred},     {"b1", T::Pred},     {"b8", T::B8},       {"b16", T::B16},       {"b32", T::B32},
      {"b64", T::B64},       {"b128", T::B128},   {"u8", T::U8},       {"u16", T::U16},       {"u32", T::U32},
      {"u64", T::U64},       {"s8", T::S8},       {"s16", T::S16},     {"s32", T::S32},       {"s64", T::S64},
      {"f16", T::F16},       {"f16x2", T::F16x2}, {"bf16", T::BF16},   {"bf16x2", T::BF16x2}, {"tf32", T::TF32},
      {"f32", T::F32},       {"f64", T::F64},     {"e4m3", T::E4M3},   {"e5m2", T::E5M2},     {"e4m3x2", T::E4M3x2},
      {"e5m2x2", T::E5M2x2}, {"u16x2", T::U16x2}, {"s16x2", T::S16x2}, {"u8x4", T::U8x4},     {"s8x4", T::S8x4}};
  auto it = table.find(text);
  return it == table.end() ? T::None : it->second;
}

uint32_t size_of(ScalarType type) {
  using T = ScalarType;
  switch (type) {
    case T::None: return 0;
    case T::Pred: return 4;
    case T::B8:
    case T::U8:
    case T::S8:
    case T::E4M3:
    case T::E5M2: return 1;
    case T::B16:
    case T::U16:
    case T::S16:
    case T::F16:
    case T::BF16:
    case T::E4M3x2:
    case T::E5M2x2: return 2;
    case T::B64:
    case T::U64:
    case T::S64:
    case T::F64: return 8;
    case T::B128: return 16;
    default: return 4;
  }
}

bool is_signed(ScalarType type) {
  using T = ScalarType;
  return type == T::S8 || type == T::S16 || type == T::S32 || type == T::S64;
}

bool is_float(ScalarType type) {
  using T = ScalarType;
  switch (type) {
    case T::F16:
    case T::F16x2:
    case T::BF16:
    case T::BF16x2:
    case T::TF32:
    case T::F32:
    case T::F64:
    case T::E4M3:
    case T::E5M2:
    case T::E4M3x2:
    case T::E5M2x2: return true;
    default: return false;
  }
}

}  // namespace hunyuan_kernels::simulator
