#include "simulator/tensor_map.h"

#include <algorithm>

#include "simulator/error.h"

namespace hunyuan_kernels::simulator {

uint32_t size_of(TensorDataType t) {
  using D = TensorDataType;
  switch (t) {
    case D::U8: return 1;
    case D::U16:
    case D::F16:
    case D::BF16: return 2;
    case D::U64:
    case D::S64:
    case D::F64: return 8;
    default: return 4;
  }
}

uint32_t TensorMap::rows() const {
  uint32_t n = 1;
  for (int i = 1; i < rank; ++i) n *= (box[i] + element_strides[i] - 1) / element_strides[i];
  return n;
}
uint32_t TensorMap::row_pitch() const {
  // A swizzled box narrower than its span keeps full-span rows.
  return swizzle && row_bytes() < swizzle_span() ? swizzle_span() : row_bytes();
}

uint32_t TensorMap::box_bytes() const { return row_bytes() * rows(); }

std::string TensorMap::problem() const {
  using Wide = unsigned long long;
  if (type > static_cast<uint8_t>(TensorDataType::TF32Ftz))
    return format("data type %u is unknown or not supported", type);
  if (rank < 1 || rank > 5) return format("rank %u is outside [1, 5]", rank);
  if (interleave) return format("interleave %u is not supported by the simulator", interleave);
  if (address == 0 || address % 16)
    return format("global address 0x%llx is null or not 16-byte aligned", static_cast<Wide>(address));
  for (uint32_t i = 0; i < rank; ++i) {
    if (dims[i] < 1 || dims[i] > (1ull << 32))
      return format("dimension %u has size %llu, outside [1, 2^32]", i, static_cast<Wide>(dims[i]));
    if (box[i] < 1 || box[i] > 256) return format("box dimension %u is %u, outside [1, 256]", i, box[i]);
    if (element_strides[i] < 1 || element_strides[i] > 8)
      return format("element stride %u is %u, outside [1, 8]", i, element_strides[i]);
    if (i + 1 == rank) break;
    if (strides[i] % 16)
      return format("stride of dimension %u (%llu bytes) is not a multiple of 16", i + 1,
                    static_cast<Wide>(strides[i]));
    if (strides[i] >= (1ull << 40))
      return format("stride of dimension %u (%llu bytes) is not below 2^40", i + 1, static_cast<Wide>(strides[i]));
  }
  if (row_bytes() % 16) return format("inner box dimension is %u bytes, not a multiple of 16", row_bytes());
  if (swizzle && row_bytes() > swizzle_span())
    return format("inner box dimension is %u bytes, more than the swizzle span of %u", row_bytes(), swizzle_span());
  if (nan_fill && static_cast<TensorDataType>(type) < TensorDataType::F16)
    return format("NaN fill needs a floating-point type, not type %u", type);
  return "";
}

TensorMap TensorMap::encode(const TensorMapDescription& d) {
  auto refuse = [](const std::string& problem) {
    if (!problem.empty()) throw SimError("invalid tensor map: " + problem);
  };
  if (d.rank < 1 || d.rank > 5) refuse(format("rank %u is outside [1, 5]", d.rank));
  if (d.swizzle > 3) refuse(format("swizzle mode %u is unknown or does not exist on sm_90", d.swizzle));
  if (d.oob_fill > 1) refuse(format("out-of-bounds fill %u is unknown", d.oob_fill));
  TensorMap map;
  map.type = static_cast<uint8_t>(std::min(d.type, 255u));
  map.rank = static_cast<uint8_t>(d.rank);
  map.interleave = static_cast<uint8_t>(std::min(d.interleave, 255u));
  map.swizzle = d.swizzle == 0 ? 0 : static_cast<uint8_t>(1u << d.swizzle);
  map.nan_fill = d.oob_fill == 1;
  map.address = d.address;
  for (uint32_t i = 0; i < d.rank; ++i) {
    map.dims[i] = d.dims[i];
    map.box[i] = static_cast<uint16_t>(std::min(d.box[i], 0xffffu));
    map.element_strides[i] = static_cast<uint8_t>(std::min(d.element_strides[i], 255u));
    if (i + 1 < d.rank) map.strides[i] = d.strides[i];
  }
  refuse(map.problem());
  // Without interleave the hardware has no element stride in the innermost dimension: the value is ignored.
  map.element_strides[0] = 1;
  return map;
}

}  // namespace hunyuan_kernels::simulator
