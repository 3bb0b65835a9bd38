// Compiled only where the toolkit is present: cuda_types.h and table.h against cuda.h.
#include <cuda.h>

#include <type_traits>

#include "driver/table.h"

namespace {
namespace ours = hunyuan_kernels::driver;

#define HK_SAME_VALUE(name) static_assert(static_cast<int>(ours::name) == static_cast<int>(::name))
HK_SAME_VALUE(CUDA_SUCCESS);
HK_SAME_VALUE(CUDA_ERROR_INVALID_VALUE);
HK_SAME_VALUE(CUDA_ERROR_NO_DEVICE);
HK_SAME_VALUE(CUDA_ERROR_INVALID_DEVICE);
HK_SAME_VALUE(CUDA_ERROR_INVALID_PTX);
HK_SAME_VALUE(CUDA_ERROR_NOT_FOUND);
HK_SAME_VALUE(CUDA_ERROR_LAUNCH_FAILED);
HK_SAME_VALUE(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
HK_SAME_VALUE(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
HK_SAME_VALUE(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
HK_SAME_VALUE(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
HK_SAME_VALUE(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
HK_SAME_VALUE(CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED);
HK_SAME_VALUE(CU_STREAM_CAPTURE_MODE_RELAXED);
HK_SAME_VALUE(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
HK_SAME_VALUE(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
HK_SAME_VALUE(CU_TENSOR_MAP_DATA_TYPE_UINT8);
HK_SAME_VALUE(CU_TENSOR_MAP_DATA_TYPE_INT32);
HK_SAME_VALUE(CU_TENSOR_MAP_DATA_TYPE_INT64);
HK_SAME_VALUE(CU_TENSOR_MAP_DATA_TYPE_FLOAT32);
HK_SAME_VALUE(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
HK_SAME_VALUE(CU_TENSOR_MAP_INTERLEAVE_NONE);
HK_SAME_VALUE(CU_TENSOR_MAP_SWIZZLE_NONE);
HK_SAME_VALUE(CU_TENSOR_MAP_SWIZZLE_32B);
HK_SAME_VALUE(CU_TENSOR_MAP_SWIZZLE_64B);
HK_SAME_VALUE(CU_TENSOR_MAP_SWIZZLE_128B);
HK_SAME_VALUE(CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
HK_SAME_VALUE(CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA);
#undef HK_SAME_VALUE

#define HK_SAME_MEMBER(type, member) static_assert(offsetof(ours::type, member) == offsetof(::type, member))
static_assert(sizeof(ours::CUlaunchConfig) == sizeof(::CUlaunchConfig));
HK_SAME_MEMBER(CUlaunchConfig, blockDimX);
HK_SAME_MEMBER(CUlaunchConfig, sharedMemBytes);
HK_SAME_MEMBER(CUlaunchConfig, hStream);
HK_SAME_MEMBER(CUlaunchConfig, attrs);
HK_SAME_MEMBER(CUlaunchConfig, numAttrs);
static_assert(sizeof(ours::CUlaunchAttribute) == sizeof(::CUlaunchAttribute));
HK_SAME_MEMBER(CUlaunchAttribute, value);
HK_SAME_MEMBER(CUlaunchAttributeValue, clusterDim);
HK_SAME_MEMBER(CUlaunchAttributeValue, programmaticStreamSerializationAllowed);
static_assert(sizeof(ours::CUtensorMap) == sizeof(::CUtensorMap) &&
              alignof(ours::CUtensorMap) >= alignof(::CUtensorMap));
#undef HK_SAME_MEMBER

// Same number of parameters, each of the same size and kind.
template <typename Ours, typename Theirs>
constexpr bool same_parameter = sizeof(Ours) == sizeof(Theirs) && std::is_pointer_v<Ours> == std::is_pointer_v<Theirs>;
template <typename... Ours, typename... Theirs>
constexpr bool same_signature(ours::CUresult (*)(Ours...), ::CUresult (*)(Theirs...)) {
  if constexpr (sizeof...(Ours) == sizeof...(Theirs))
    return (same_parameter<Ours, Theirs> && ...);
  else
    return false;
}
#define HK_CHECK(name, symbol, parameters)                                              \
  static_assert(same_signature(static_cast<decltype(ours::DriverTable::name)>(nullptr), \
                               static_cast<decltype(&::name)>(nullptr)));
HK_DRIVER_FUNCTIONS(HK_CHECK)
#undef HK_CHECK

}  // namespace
