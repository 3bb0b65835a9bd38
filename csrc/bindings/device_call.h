// One call of an op on a device: a GPU, or the simulated GPU of the calling thread.
#pragma once
#include <optional>

#include "bindings/torch_glue.h"
#include "driver/device.h"

namespace hunyuan_kernels {

// False when the CPU backend runs the call. Otherwise the device is current while the object lives, launches go to
// torch's current stream of that device, and data pointers are taken through reads() and writes(), which tell the
// simulator what the kernels may touch:
//
//   DeviceCall call(op, x);
//   if (call) {
//     launch_...(plan, {call.reads<T>("x", x), call.writes<T>("q", q)}, call.stream());
//     call.finish();
//   }
class DeviceCall {
 public:
  // The device of `x`, which other tensors of the call share. Raises when a GPU cannot be used, and for a CUDA tensor
  // in a thread that simulates.
  DeviceCall(const char* op, const Tensor& x);

  explicit operator bool() const { return device_ != nullptr; }
  const driver::DeviceProperties& properties() const { return device_->properties(); }
  driver::Stream& stream() { return *stream_; }

  template <typename Value>
  const Value* reads(const char* name, const Tensor& tensor) {
    declare(name, tensor, true);
    return static_cast<const Value*>(tensor.const_data_ptr());
  }
  template <typename Value>
  Value* writes(const char* name, const Tensor& tensor) {
    declare(name, tensor, false);
    return static_cast<Value*>(tensor.mutable_data_ptr());
  }
  // Every launch of the call has been made: the simulator runs them, or leaves them in its queue while ops overlap
  // (simulate_overlap). A GPU is not waited for.
  void finish();

 private:
  void declare(const char* name, const Tensor& tensor, bool read_only);

  const char* op_;
  driver::Device* device_ = nullptr;
  std::optional<driver::Device::Current> current_;
  std::optional<driver::Stream> stream_;
};

}  // namespace hunyuan_kernels
