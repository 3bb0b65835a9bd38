#include "driver/simulated_gpu.h"

#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string_view>

namespace hunyuan_kernels::driver {
namespace {

using simulator::format;
using simulator::Module;
using simulator::SimError;

thread_local SimulatedGpu* current_gpu = nullptr;
thread_local std::string error_text;

// A refusal with the code that CUDA has for it.
struct Refused : std::runtime_error {
  Refused(CUresult code, const std::string& text) : std::runtime_error(text), code(code) {}
  CUresult code;
};

template <typename Body>
CUresult call(CUresult code, Body&& body) {
  try {
    if (!current_gpu) throw Refused(CUDA_ERROR_NO_DEVICE, "no simulated GPU is current on this thread");
    body(*current_gpu);
    return CUDA_SUCCESS;
  } catch (const Refused& e) {
    error_text = e.what();
    return e.code;
  } catch (const std::exception& e) {
    error_text = e.what();
    return code;
  }
}

// Modules without variables that kernels write are parsed once and shared by all simulated GPUs.
std::shared_ptr<const Module> module_of(const char* ptx) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<const Module>, std::less<>> shared;
  std::lock_guard lock(mutex);
  if (auto found = shared.find(std::string_view(ptx)); found != shared.end()) return found->second;
  auto module = std::make_shared<const Module>(std::string(ptx));
  for (const auto& [name, variable] : module->variables())
    if (!variable.read_only) return module;
  return shared[ptx] = module;
}

DriverTable make_table() {
  DriverTable table{};
  table.cuGetErrorString = [](CUresult, const char** text) {
    *text = error_text.c_str();
    return CUDA_SUCCESS;
  };
  table.cuDriverGetVersion = [](int* version) {
    *version = 13000;  // PTX of CUDA 13.0 is what the simulator reads
    return CUDA_SUCCESS;
  };
  table.cuDeviceGetCount = [](int* count) {
    *count = 1;
    return CUDA_SUCCESS;
  };
  table.cuDeviceGet = [](CUdevice* device, int ordinal) {
    return call(CUDA_ERROR_INVALID_DEVICE, [&](SimulatedGpu&) {
      if (ordinal != 0) throw std::runtime_error(format("device %d does not exist: the simulated GPU is 0", ordinal));
      *device = 0;
    });
  };
  table.cuDeviceGetAttribute = [](int* value, CUdevice_attribute which, CUdevice) {
    return call(CUDA_ERROR_INVALID_VALUE, [&](SimulatedGpu& gpu) { *value = gpu.attribute(which); });
  };
  // There is one context; which GPU it belongs to depends on the thread.
  table.cuDevicePrimaryCtxRetain = [](CUcontext* context, CUdevice) {
    *context = nullptr;
    return CUDA_SUCCESS;
  };
  table.cuCtxPushCurrent = [](CUcontext) { return CUDA_SUCCESS; };
  table.cuCtxPopCurrent = [](CUcontext* context) {
    *context = nullptr;
    return CUDA_SUCCESS;
  };
  table.cuThreadExchangeStreamCaptureMode = [](CUstreamCaptureMode*) { return CUDA_SUCCESS; };
  table.cuLibraryLoadData = [](CUlibrary* library, const void* code, int*, void**, unsigned int, int*, void**,
                               unsigned int) {
    return call(CUDA_ERROR_INVALID_PTX,
                [&](SimulatedGpu& gpu) { *library = gpu.load(static_cast<const char*>(code)); });
  };
  table.cuLibraryGetKernel = [](CUkernel* kernel, CUlibrary library, const char* name) {
    return call(CUDA_ERROR_NOT_FOUND, [&](SimulatedGpu& gpu) { *kernel = gpu.find_kernel(library, name); });
  };
  table.cuKernelSetAttribute = [](CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice) {
    return call(CUDA_ERROR_INVALID_VALUE, [&](SimulatedGpu& gpu) { gpu.set_attribute(kernel, attribute, value); });
  };
  table.cuLaunchKernelEx = [](const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
    return call(CUDA_ERROR_INVALID_VALUE, [&](SimulatedGpu& gpu) {
      if (extra) throw std::runtime_error("arguments as one buffer (extra) are not supported by the simulator");
      gpu.enqueue(*config, reinterpret_cast<CUkernel>(function), parameters);
    });
  };
  table.cuTensorMapEncodeTiled = [](CUtensorMap* map, CUtensorMapDataType type, uint32_t rank, void* address,
                                    const uint64_t* dimensions, const uint64_t* strides, const uint32_t* box,
                                    const uint32_t* element_strides, CUtensorMapInterleave interleave,
                                    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                    CUtensorMapFloatOOBfill fill) {
    return call(CUDA_ERROR_INVALID_VALUE, [&](SimulatedGpu&) {
      simulator::TensorMapDescription d;
      d.type = static_cast<uint32_t>(type);
      d.rank = rank;
      d.address = reinterpret_cast<uint64_t>(address);
      d.dims = dimensions;
      d.strides = strides;
      d.box = box;
      d.element_strides = element_strides;
      d.interleave = static_cast<uint32_t>(interleave);
      d.swizzle = static_cast<uint32_t>(swizzle);
      d.l2_promotion = static_cast<uint32_t>(promotion);
      d.oob_fill = static_cast<uint32_t>(fill);
      const simulator::TensorMap encoded = simulator::TensorMap::encode(d);
      static_assert(sizeof(encoded) == sizeof(*map));
      memcpy(map, &encoded, sizeof(encoded));
    });
  };
  table.declare_memory = [](const void* address, uint64_t bytes, const char* name, bool read_only) {
    if (current_gpu) current_gpu->declare_memory(address, bytes, name, read_only);
  };
  table.run_queue = [] { return call(CUDA_ERROR_LAUNCH_FAILED, [](SimulatedGpu& gpu) { gpu.run_queue(); }); };
  return table;
}

}  // namespace

const DriverTable& simulated_driver() {
  static const DriverTable table = make_table();
  return table;
}

SimulatedGpu::~SimulatedGpu() {
  if (current_gpu == this) current_gpu = nullptr;
}

void SimulatedGpu::make_current(SimulatedGpu* gpu) { current_gpu = gpu; }

int SimulatedGpu::attribute(CUdevice_attribute which) const {
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return static_cast<int>(device_.options.num_sms);
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return static_cast<int>(device_.options.capability / 10);
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return static_cast<int>(device_.options.capability % 10);
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      return static_cast<int>(device_.options.max_shared_bytes);
  }
  throw std::runtime_error(format("device attribute %d is unknown to the simulator", static_cast<int>(which)));
}

CUlibrary SimulatedGpu::load(const char* ptx) {
  if (auto found = substitutes_.find(std::string_view(ptx)); found != substitutes_.end())
    return reinterpret_cast<CUlibrary>(const_cast<Module*>(found->second));
  return reinterpret_cast<CUlibrary>(const_cast<Module*>(modules_.emplace_back(module_of(ptx)).get()));
}

CUkernel SimulatedGpu::find_kernel(CUlibrary library, const std::string& name) {
  const auto* module = reinterpret_cast<const Module*>(library);
  simulator::KernelInfo info = module->kernel_info(name);
  if (info.name != name) throw std::runtime_error("no kernel is named '" + name + "'; near: " + info.name);
  return reinterpret_cast<CUkernel>(&kernels_.emplace_back(Kernel{module, std::move(info)}));
}

void SimulatedGpu::set_attribute(CUkernel handle, CUfunction_attribute attribute, int value) {
  Kernel& kernel = *reinterpret_cast<Kernel*>(handle);
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: {
      const int64_t limit = int64_t{device_.options.max_shared_bytes} - kernel.info.static_shared_bytes;
      if (value < 0 || value > limit)
        throw std::runtime_error(format("%d bytes of dynamic shared memory for kernel %s, outside [0, %lld]", value,
                                        kernel.info.name.c_str(), static_cast<long long>(limit)));
      kernel.dynamic_shared_bytes = value + static_cast<int>(kernel.info.static_shared_bytes);
      return;
    }
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: kernel.large_clusters = value != 0; return;
  }
  throw std::runtime_error(format("kernel attribute %d is unknown to the simulator", static_cast<int>(attribute)));
}

void SimulatedGpu::enqueue(const CUlaunchConfig& config, CUkernel handle, void** parameters) {
  const Kernel& kernel = *reinterpret_cast<Kernel*>(handle);
  simulator::LaunchConfig launch{{config.gridDimX, config.gridDimY, config.gridDimZ},
                                 {config.blockDimX, config.blockDimY, config.blockDimZ}};
  launch.shared_bytes = config.sharedMemBytes;
  for (unsigned int i = 0; i < config.numAttrs; ++i) {
    const CUlaunchAttribute& a = config.attrs[i];
    if (a.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
      launch.cluster[0] = a.value.clusterDim.x;
      launch.cluster[1] = a.value.clusterDim.y;
      launch.cluster[2] = a.value.clusterDim.z;
    } else if (a.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
      launch.programmatic_stream_serialization = a.value.programmaticStreamSerializationAllowed != 0;
    } else {
      throw std::runtime_error(format("launch attribute %d is unknown to the simulator", static_cast<int>(a.id)));
    }
  }
  try {
    const char* name = kernel.info.name.c_str();
    if (uint64_t{launch.cluster[0]} * launch.cluster[1] * launch.cluster[2] > 8 && !kernel.large_clusters)
      throw std::runtime_error(
          format("launch of kernel %s: clusters of more than 8 blocks were not allowed "
                 "(CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED)",
                 name));
    if (uint64_t{launch.shared_bytes} + kernel.info.static_shared_bytes > uint64_t(kernel.dynamic_shared_bytes))
      throw std::runtime_error(
          format("launch of kernel %s: %u bytes of dynamic shared memory were not allowed "
                 "(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)",
                 name, launch.shared_bytes));
    std::vector<simulator::Argument> arguments;
    for (size_t i = 0; i < kernel.info.parameters.size(); ++i)
      arguments.push_back(simulator::Argument::of_bytes(parameters[i], kernel.info.parameters[i].bytes));
    device_.enqueue(*kernel.module, kernel.info.name, launch, std::move(arguments));
  } catch (...) {
    forget_call();
    throw;
  }
  queued_.push_back({{launch.grid[0], launch.grid[1], launch.grid[2]},
                     {launch.block[0], launch.block[1], launch.block[2]},
                     {launch.cluster[0], launch.cluster[1], launch.cluster[2]},
                     {}});
}

void SimulatedGpu::declare_memory(const void* address, uint64_t bytes, const char* name, bool read_only) {
  if (bytes == 0) return;
  device_.register_memory(address, bytes, name, read_only);
  declared_.push_back(address);
}

void SimulatedGpu::forget_call() {
  for (const void* address : declared_) device_.unregister_memory(address);
  declared_.clear();
  queued_.clear();
  device_.discard_queue();
}

void SimulatedGpu::run_queue() {
  std::vector<CompletedLaunch> launches = queued_;
  std::vector<simulator::Report> reports;
  try {
    reports = device_.synchronize();
  } catch (const SimError& e) {
    findings_.push_back(e.what());
    forget_call();
    throw;
  }
  forget_call();
  for (size_t i = 0; i < launches.size(); ++i) {
    launches[i].report = std::move(reports[i]);
    completed_.push_back(std::move(launches[i]));
  }
}

}  // namespace hunyuan_kernels::driver
