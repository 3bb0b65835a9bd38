#include "bindings/device_call.h"

#include <dlfcn.h>

#include <memory>
#include <vector>

namespace hunyuan_kernels {
namespace {

thread_local std::unique_ptr<driver::Device> simulated_device;

// While ops of this thread overlap: what their queued launches touch, workspaces among them, lives until they have run.
thread_local bool overlapping = false;
thread_local std::vector<Tensor> held;

// `table` is the address of a DriverTable that outlives the simulation, 0 to end it. Of this thread alone.
void simulate(int64_t table) {
  overlapping = false;
  held.clear();
  simulated_device.reset();
  if (table)
    simulated_device = std::make_unique<driver::Device>(*reinterpret_cast<const driver::DriverTable*>(table), 0);
}

// Launches of the simulating thread's ops wait in the queue from now on, as in a stream, or (false) run, overlapping.
void simulate_overlap(bool overlap) {
  check(simulated_device != nullptr, "simulate_overlap", "overlap", "is given outside simulated_gpu()");
  overlapping = overlap;
  if (overlap) return;
  const std::vector<Tensor> until_the_end = std::move(held);
  held.clear();
  simulated_device->finish_call("simulate_overlap");
}

// torch's current stream. The function is in the CUDA half of torch, which is loaded wherever a CUDA tensor exists, but
// need not be among the libraries in which the linker looks for this library's symbols: asked for by name.
driver::CUstream current_stream(const char* op, int32_t device_index) {
  using Function = int32_t (*)(int32_t device_index, void** stream);
  static const Function function = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return torch_cuda ? reinterpret_cast<Function>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  check(function && function(device_index, &stream) == 0, op, "x", "is on cuda:", device_index,
        ", but this torch does not say what its current CUDA stream is; torch 2.10 or newer built for CUDA is needed");
  return static_cast<driver::CUstream>(stream);
}

}  // namespace

DeviceCall::DeviceCall(const char* op, const Tensor& x) : op_(op) {
  check(x.defined(), op, "the first tensor", "is None; a tensor is required");
  driver::CUstream stream = nullptr;
  if (simulated_device) {
    check(x.is_cpu(), op, "x", "is on ", device_text(x),
          ", but this thread is inside simulated_gpu(), which takes CPU tensors");
    device_ = simulated_device.get();
  } else if (x.is_cuda()) {
    stream = current_stream(op, x.get_device_index());
    device_ = &driver::Device::cuda(x.get_device_index());
  } else {
    return;
  }
  current_.emplace(*device_);
  stream_.emplace(driver::Stream{*device_, stream});
}

void DeviceCall::finish() {
  if (!overlapping || device_ != simulated_device.get()) device_->finish_call(op_);
}

void DeviceCall::declare(const char* name, const Tensor& tensor, bool read_only) {
  int64_t elements = tensor.numel() == 0 ? 0 : 1;  // from the first to the last element
  for (int64_t d = 0; elements && d < tensor.dim(); ++d) elements += (tensor.size(d) - 1) * tensor.stride(d);
  if (overlapping) held.push_back(tensor);
  device_->declare_memory(name, tensor.const_data_ptr(), static_cast<uint64_t>(elements) * tensor.element_size(),
                          read_only);
}

}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def("simulate(int driver_table) -> ()");
  m.def("simulate_overlap(bool overlap) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, CompositeExplicitAutograd, m) {
  m.impl("simulate", TORCH_BOX(&hunyuan_kernels::simulate));
  m.impl("simulate_overlap", TORCH_BOX(&hunyuan_kernels::simulate_overlap));
}
