// The driver table: the CUDA driver functions through which all host code reaches a device. It is filled from libcuda
// at run time or by the simulator, so that plans, tensor maps, arguments and launches are the same lines on both.
#pragma once
#include <cstddef>
#include <string>

#include "driver/cuda_types.h"

namespace hunyuan_kernels::driver {

// X(name in the table, exported symbol, parameters). Names and parameters are those of cuda.h.
#define HK_DRIVER_FUNCTIONS(X)                                                                                        \
  X(cuGetErrorString, cuGetErrorString, (CUresult error, const char** text))                                          \
  X(cuDriverGetVersion, cuDriverGetVersion, (int* version))                                                           \
  X(cuDeviceGetCount, cuDeviceGetCount, (int* count))                                                                 \
  X(cuDeviceGet, cuDeviceGet, (CUdevice * device, int ordinal))                                                       \
  X(cuDeviceGetAttribute, cuDeviceGetAttribute, (int* value, CUdevice_attribute attribute, CUdevice device))          \
  X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                       \
  X(cuCtxPushCurrent, cuCtxPushCurrent_v2, (CUcontext context))                                                       \
  X(cuCtxPopCurrent, cuCtxPopCurrent_v2, (CUcontext * context))                                                       \
  X(cuThreadExchangeStreamCaptureMode, cuThreadExchangeStreamCaptureMode, (CUstreamCaptureMode * mode))               \
  X(cuLibraryLoadData, cuLibraryLoadData,                                                                             \
    (CUlibrary * library, const void* code, int* jit_options, void** jit_values, unsigned int jit_count,              \
     int* library_options, void** library_values, unsigned int library_count))                                        \
  X(cuLibraryGetKernel, cuLibraryGetKernel, (CUkernel * kernel, CUlibrary library, const char* name))                 \
  X(cuKernelSetAttribute, cuKernelSetAttribute,                                                                       \
    (CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice device))                                    \
  X(cuLaunchKernelEx, cuLaunchKernelEx,                                                                               \
    (const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra))                             \
  X(cuTensorMapEncodeTiled, cuTensorMapEncodeTiled,                                                                   \
    (CUtensorMap * map, CUtensorMapDataType type, uint32_t rank, void* address, const uint64_t* dimensions,           \
     const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides, CUtensorMapInterleave interleave, \
     CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill))

struct DriverTable {
#define HK_DECLARE(name, symbol, parameters) CUresult(*name) parameters;
  HK_DRIVER_FUNCTIONS(HK_DECLARE)
#undef HK_DECLARE
  // The rest is the simulator's; null for libcuda. A simulated kernel may touch exactly the memory that was declared
  // since the queue ran last, and launches wait in the queue until it runs.
  void (*declare_memory)(const void* address, uint64_t bytes, const char* name, bool read_only);
  CUresult (*run_queue)();

  bool is_simulator() const { return run_queue != nullptr; }
};

// libcuda's functions, opened at the first call. Raises, each time, with the reason and what to do about it when there
// is no driver.
const DriverTable& cuda_driver();

// Raises std::runtime_error with the driver's own text: "<what>: <text> (CUDA error <number>)".
void check_driver(const DriverTable& table, CUresult result, const std::string& what);

}  // namespace hunyuan_kernels::driver
