#include "host/tensor_map.h"

#include <string>

namespace hunyuan_kernels::host {
namespace {

driver::CUtensorMapDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16: return driver::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::nf4:  // two to a byte
    case DType::float8_e4m3fn: return driver::CU_TENSOR_MAP_DATA_TYPE_UINT8;
    case DType::float32: return driver::CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::int32: return driver::CU_TENSOR_MAP_DATA_TYPE_INT32;
    case DType::int64: return driver::CU_TENSOR_MAP_DATA_TYPE_INT64;
  }
  return driver::CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

}  // namespace

driver::CUtensorMap tensor_map(const driver::DriverTable& table, const TiledTensor& tensor, const char* what) {
  using namespace driver;
  const int64_t size = element_size(tensor.dtype);
  uint64_t dimensions[3], strides[2];
  for (int d = 0; d < 3; ++d) dimensions[d] = static_cast<uint64_t>(tensor.sizes[d]);
  for (int d = 0; d < 2; ++d) strides[d] = static_cast<uint64_t>(tensor.strides[d] * size);
  const uint32_t element_strides[3] = {1, 1, 1};
  CUtensorMap map;
  // Neighbouring boxes along the contiguous dimension are read next: L2 may fetch 256 bytes for 128.
  const CUresult result =
      table.cuTensorMapEncodeTiled(&map, type_of(tensor.dtype), tensor.rank, const_cast<void*>(tensor.data), dimensions,
                                   strides, tensor.box.data(), element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                   tensor.swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check_driver(table, result, std::string("hunyuan_kernels: tensor map of ") + what);
  return map;
}

}  // namespace hunyuan_kernels::host
