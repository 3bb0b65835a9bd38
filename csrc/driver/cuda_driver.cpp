// The driver table from libcuda.
#include <dlfcn.h>

#include <stdexcept>

#include "driver/table.h"

namespace hunyuan_kernels::driver {
namespace {

struct Opened {
  DriverTable table{};
  std::string error;  // empty: usable
};

Opened open_libcuda() {
  Opened opened;
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    opened.error = "hunyuan_kernels: the CUDA driver cannot be loaded (" + std::string(dlerror()) +
                   "): install NVIDIA's driver, or use CPU tensors";
    return opened;
  }
  std::string missing;
#define HK_LOAD(name, symbol, parameters)                                                \
  opened.table.name = reinterpret_cast<CUresult(*) parameters>(dlsym(library, #symbol)); \
  if (!opened.table.name) missing += std::string(missing.empty() ? "" : ", ") + #symbol;
  HK_DRIVER_FUNCTIONS(HK_LOAD)
#undef HK_LOAD
  auto* initialize = reinterpret_cast<CUresult (*)(unsigned int)>(dlsym(library, "cuInit"));
  if (!initialize) missing += std::string(missing.empty() ? "" : ", ") + "cuInit";
  if (!missing.empty()) {
    opened.error = "hunyuan_kernels: libcuda.so.1 lacks " + missing + ": the driver is too old; 525 or newer is needed";
    return opened;
  }
  if (CUresult result = initialize(0); result != CUDA_SUCCESS) {
    const char* text = nullptr;
    opened.table.cuGetErrorString(result, &text);
    opened.error = "hunyuan_kernels: cuInit: " + std::string(text ? text : "unknown error") + " (CUDA error " +
                   std::to_string(result) + ")";
  }
  return opened;
}

}  // namespace

const DriverTable& cuda_driver() {
  static const Opened opened = open_libcuda();
  if (!opened.error.empty()) throw std::runtime_error(opened.error);
  return opened.table;
}

void check_driver(const DriverTable& table, CUresult result, const std::string& what) {
  if (result == CUDA_SUCCESS) return;
  const char* text = nullptr;
  table.cuGetErrorString(result, &text);
  throw std::runtime_error(what + ": " + (text ? text : "unknown error") + " (CUDA error " + std::to_string(result) +
                           ")");
}

}  // namespace hunyuan_kernels::driver
