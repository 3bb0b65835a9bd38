// Tensor maps: what TMA knows of a tensor in global memory and of the boxes that are copied.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "driver/table.h"

namespace hunyuan_kernels::host {

// A tensor of up to three dimensions, the contiguous one first. Strides in elements, of the second and third dimension.
// Boxes that are swizzled have box[0] elements of 128 bytes.
struct TiledTensor {
  DType dtype;
  const void* data;
  std::array<int64_t, 3> sizes;
  std::array<int64_t, 2> strides;
  std::array<uint32_t, 3> box;
  uint32_t rank = 3;
  bool swizzled = true;
};

// What TMA demands of addresses and strides, in bytes.
constexpr int64_t kTensorMapAlignment = 16;
constexpr int64_t kTensorMapMaxStride = int64_t{1} << 40;  // exclusive

// Raises when the driver refuses; plans see to it that it does not.
driver::CUtensorMap tensor_map(const driver::DriverTable& table, const TiledTensor& tensor, const char* what);

// As kernels take it among their arguments.
template <typename Argument>
Argument as_argument(const driver::CUtensorMap& map) {
  Argument argument;
  static_assert(sizeof(argument) == sizeof(map));
  std::memcpy(&argument, &map, sizeof(map));
  return argument;
}

}  // namespace hunyuan_kernels::host
