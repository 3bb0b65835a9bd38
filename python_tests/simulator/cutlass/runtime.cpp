// What CUTLASS's host code and nvcc's launch stubs call of the CUDA runtime, done by a driver table that is given at
// run time. Anything else is missing, and the library then does not load.
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "driver/table.h"

namespace {

namespace driver = hunyuan_kernels::driver;

const driver::DriverTable* table = nullptr;
driver::CUlibrary library = nullptr;
std::map<const void*, driver::CUkernel> kernels;  // found in `library`, by their host function
struct Configuration {                            // between <<<...>>> and the stub that it calls
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};
std::vector<Configuration> configurations;

// Names of kernels by their host function. Filled by constructors of other files, so made at the first use.
std::map<const void*, std::string>& device_names() {
  static std::map<const void*, std::string> names;
  return names;
}

cudaError_t to_runtime(driver::CUresult result) { return static_cast<cudaError_t>(result); }

cudaError_t find_kernel(const void* host_function, driver::CUkernel& kernel) {
  if (auto found = kernels.find(host_function); found != kernels.end()) {
    kernel = found->second;
    return cudaSuccess;
  }
  const driver::CUresult result = table->cuLibraryGetKernel(&kernel, library, device_names()[host_function].c_str());
  if (result == driver::CUDA_SUCCESS) kernels[host_function] = kernel;
  return to_runtime(result);
}

cudaError_t launch(driver::CUkernel kernel, dim3 grid, dim3 block, size_t shared_bytes, void** parameters,
                   driver::CUlaunchAttribute* attributes, unsigned int count) {
  driver::CUlaunchConfig config{
      grid.x,  grid.y,     grid.z, block.x, block.y, block.z, static_cast<unsigned>(shared_bytes),
      nullptr, attributes, count};
  return to_runtime(
      table->cuLaunchKernelEx(&config, reinterpret_cast<driver::CUfunction>(kernel), parameters, nullptr));
}

}  // namespace

// The calling thread's launches go to this driver from now on; `ptx` is this library's own device code.
extern "C" int use_driver(const driver::DriverTable* given, const char* ptx) {
  table = given;
  kernels.clear();
  return table->cuLibraryLoadData(&library, ptx, nullptr, nullptr, 0, nullptr, nullptr, 0);
}

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host_function, char*, const char* device_name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  device_names()[host_function] = device_name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
  configurations.push_back({grid, block, shared_bytes, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  const Configuration c = configurations.back();
  configurations.pop_back();
  *grid = c.grid;
  *block = c.block;
  *shared_bytes = c.shared_bytes;
  memcpy(stream, &c.stream, sizeof(c.stream));
  return cudaSuccess;
}
// Launch stubs keep the handle for good, but a driver's handles end with it: theirs is the host function.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host_function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host_function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t host_function, dim3 grid, dim3 block, void** parameters,
                               size_t shared_bytes, cudaStream_t) {
  driver::CUkernel kernel = nullptr;
  if (cudaError_t result = find_kernel(host_function, kernel); result != cudaSuccess) return result;
  return launch(kernel, grid, block, shared_bytes, parameters, nullptr, 0);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* host_function, void** parameters) {
  driver::CUkernel kernel = nullptr;
  if (cudaError_t result = find_kernel(host_function, kernel); result != cudaSuccess) return result;
  std::vector<driver::CUlaunchAttribute> attributes(config->numAttrs);
  for (unsigned int i = 0; i < config->numAttrs; ++i) {
    attributes[i].id = static_cast<driver::CUlaunchAttributeID>(config->attrs[i].id);
    memcpy(&attributes[i].value, &config->attrs[i].val, sizeof(attributes[i].value));
  }
  return launch(kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes, parameters, attributes.data(),
                config->numAttrs);
}

cudaError_t cudaFuncSetAttribute(const void* host_function, cudaFuncAttribute attribute, int value) {
  driver::CUkernel kernel = nullptr;
  if (cudaError_t result = find_kernel(host_function, kernel); result != cudaSuccess) return result;
  return to_runtime(
      table->cuKernelSetAttribute(static_cast<driver::CUfunction_attribute>(attribute), value, kernel, 0));
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return to_runtime(table->cuDeviceGetAttribute(value, static_cast<driver::CUdevice_attribute>(attribute), device));
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned int, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  const bool known = strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(table->cuTensorMapEncodeTiled) : nullptr;
  if (status) *status = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return known ? cudaSuccess : cudaErrorSymbolNotFound;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  const char* text = nullptr;
  table->cuGetErrorString(static_cast<driver::CUresult>(error), &text);
  return text;
}

}  // extern "C"
