#include "driver/device.h"

#include <array>
#include <memory>
#include <stdexcept>
#include <vector>

#include "driver/device_image.h"

namespace hunyuan_kernels::driver {
namespace {

// Loading code is refused while any stream of the process is captured into a graph, unless the thread asks for the
// relaxed mode: nothing here belongs to the graph.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const DriverTable& table) : table_(table) {
    check_driver(table_, table_.cuThreadExchangeStreamCaptureMode(&mode_), "cuThreadExchangeStreamCaptureMode");
  }
  ~RelaxedCapture() { table_.cuThreadExchangeStreamCaptureMode(&mode_); }

 private:
  const DriverTable& table_;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

std::string extent_text(const Extent& e) {
  return std::to_string(e.x) + "x" + std::to_string(e.y) + "x" + std::to_string(e.z);
}

}  // namespace

std::string KernelLaunch::text() const {
  std::string text = kernel + " grid " + extent_text(grid) + " block " + extent_text(block);
  if (cluster != Extent{}) text += " cluster " + extent_text(cluster);
  if (shared_bytes) text += " shared " + std::to_string(shared_bytes);
  return text;
}

Device::Device(const DriverTable& table, int ordinal) : table_(table), ordinal_(ordinal) {
  check_driver(table_, table_.cuDeviceGet(&device_, ordinal), "cuDeviceGet(" + std::to_string(ordinal) + ")");
  auto attribute = [&](CUdevice_attribute which) {
    int value = 0;
    check_driver(table_, table_.cuDeviceGetAttribute(&value, which, device_), "cuDeviceGetAttribute");
    return value;
  };
  properties_.capability = 10 * attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
                           attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  properties_.sms = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  properties_.shared_bytes = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  check_driver(table_, table_.cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain");
}

Device& Device::cuda(int ordinal) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<Device>> devices;
  std::lock_guard lock(mutex);
  if (ordinal >= static_cast<int>(devices.size())) devices.resize(ordinal + 1);
  if (!devices[ordinal]) devices[ordinal] = std::make_unique<Device>(cuda_driver(), ordinal);
  return *devices[ordinal];
}

Device::Current::Current(const Device& device) : table_(device.table_) {
  check_driver(table_, table_.cuCtxPushCurrent(device.context_), "cuCtxPushCurrent");
}

Device::Current::~Current() {
  CUcontext popped;
  table_.cuCtxPopCurrent(&popped);
}

Device::Library& Device::library(const std::string& stem) {
  if (auto found = libraries_.find(stem); found != libraries_.end()) return found->second;
  const DeviceImage* image = find_device_image(stem);
  if (!image)
    throw std::runtime_error("hunyuan_kernels: this build has no device code for '" + stem +
                             "': it was made without nvcc. Install the CUDA toolkit (or pip's nvidia-cuda-nvcc) and "
                             "build again.");
  if (image->is_portable() ? properties_.capability < 80 : properties_.capability != 90)
    throw std::runtime_error("hunyuan_kernels: '" + stem + "' has device code for compute capability " +
                             (image->is_portable() ? "8.0 and newer" : "9.0 (Hopper) only") + "; cuda:" +
                             std::to_string(ordinal_) + " has " + std::to_string(properties_.capability / 10) + "." +
                             std::to_string(properties_.capability % 10) + ". Use CPU tensors there.");
  const void* code = image->binary.begin;
  if (table_.is_simulator()) code = has_clusters(properties_) ? image->ptx.begin : image->portable_ptx.begin;
  return libraries_[stem] = load(code, "the device code of '" + stem + "' (" + device_image_toolkit() + ")");
}

Device::Library Device::load(const void* code, const std::string& what) {
  RelaxedCapture relaxed(table_);
  Library library;
  library.name = what;
  CUresult result = table_.cuLibraryLoadData(&library.handle, code, nullptr, nullptr, 0, nullptr, nullptr, 0);
  if (result != CUDA_SUCCESS) {
    int version = 0;
    table_.cuDriverGetVersion(&version);
    check_driver(table_, result,
                 "hunyuan_kernels: loading " + what + " with a driver for CUDA " + std::to_string(version / 1000) +
                     "." + std::to_string(version % 1000 / 10));
  }
  return library;
}

CUkernel Device::kernel(Library& library, const KernelLaunch& launch) {
  auto found = library.kernels.find(launch.kernel);
  if (found == library.kernels.end()) {
    RelaxedCapture relaxed(table_);
    CUkernel kernel = nullptr;
    check_driver(table_, table_.cuLibraryGetKernel(&kernel, library.handle, launch.kernel.c_str()),
                 "hunyuan_kernels: kernel " + launch.kernel + " of " + library.name);
    // Clusters of more than 8 blocks have to be allowed; that costs a kernel nothing which does not use them.
    if (launch.cluster != Extent{})
      check_driver(table_,
                   table_.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1, kernel, device_),
                   "hunyuan_kernels: clusters for " + launch.kernel);
    found = library.kernels.emplace(launch.kernel, Library::Configured{kernel, 0}).first;
  }
  if (launch.shared_bytes > found->second.shared_bytes) {
    check_driver(
        table_,
        table_.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                    static_cast<int>(launch.shared_bytes), found->second.kernel, device_),
        "hunyuan_kernels: " + std::to_string(launch.shared_bytes) + " bytes of shared memory for " + launch.kernel);
    found->second.shared_bytes = launch.shared_bytes;
  }
  return found->second.kernel;
}

void Device::launch(const KernelLaunch& launch, CUstream stream, void** parameters) {
  Library* code;
  {
    std::lock_guard lock(mutex_);
    code = &library(launch.stem);  // stays where it is
  }
  this->launch(*code, launch, stream, parameters);
}

void Device::launch(Library& library, const KernelLaunch& launch, CUstream stream, void** parameters) {
  std::array<CUlaunchAttribute, 2> attributes{};
  CUlaunchConfig config{launch.grid.x,  launch.grid.y,       launch.grid.z, launch.block.x,    launch.block.y,
                        launch.block.z, launch.shared_bytes, stream,        attributes.data(), 0};
  if (launch.cluster != Extent{}) {
    CUlaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attribute.value.clusterDim = {launch.cluster.x, launch.cluster.y, launch.cluster.z};
  }
  if (launch.programmatic && has_clusters(properties_)) {
    CUlaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
  }
  CUfunction function;
  {
    std::lock_guard lock(mutex_);
    function = reinterpret_cast<CUfunction>(kernel(library, launch));
  }
  check_driver(table_, table_.cuLaunchKernelEx(&config, function, parameters, nullptr),
               "hunyuan_kernels: launch of " + launch.text());
}

void Device::declare_memory(const char* name, const void* address, uint64_t bytes, bool read_only) {
  if (table_.declare_memory) table_.declare_memory(address, bytes, name, read_only);
}

void Device::finish_call(const std::string& what) {
  if (table_.run_queue) check_driver(table_, table_.run_queue(), what);
}

}  // namespace hunyuan_kernels::driver
