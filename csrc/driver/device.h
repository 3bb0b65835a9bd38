// A device, real or simulated, as host code sees it: its properties, its kernels, launches.
#pragma once
#include <map>
#include <mutex>
#include <string>

#include "driver/kernel_launch.h"
#include "driver/table.h"

namespace hunyuan_kernels::driver {

// What plans depend on. Plans are made without a device in tests.
struct DeviceProperties {
  int capability = 90;  // compute capability, 10 * major + minor
  int sms = 132;
  int shared_bytes = 227 * 1024;  // per block, after opting in
};

// Thread block clusters and programmatic dependent launch came together, with Hopper; device code compiled for older
// GPUs takes every block for a cluster of its own.
inline bool has_clusters(const DeviceProperties& device) { return device.capability >= 90; }

class Device {
 public:
  Device(const DriverTable& table, int ordinal);
  // The GPU with this number, as torch counts them. Lives as long as the process. Raises without a driver.
  static Device& cuda(int ordinal);

  const DriverTable& table() const { return table_; }
  const DeviceProperties& properties() const { return properties_; }

  // Makes the device's primary context current on the calling thread, where torch has it too, and puts the old one
  // back.
  class Current {
   public:
    explicit Current(const Device& device);
    ~Current();
    Current(const Current&) = delete;

   private:
    const DriverTable& table_;
  };

  // `parameters` point at the kernel's arguments, in order. The device must be current.
  void launch(const KernelLaunch& launch, CUstream stream, void** parameters);

  // Code and its kernels that were asked for so far.
  struct Library {
    std::string name;  // in errors
    CUlibrary handle = nullptr;
    struct Configured {
      CUkernel kernel;
      uint32_t shared_bytes;  // allowed so far
    };
    std::map<std::string, Configured> kernels;  // by entry name
  };
  // Code that is not part of this build: PTX text, which the driver compiles, or for a GPU a cubin. `what` names it in
  // errors. The device must be current, also for the launch of its kernels, which does not look at their stem.
  Library load(const void* code, const std::string& what);
  void launch(Library& library, const KernelLaunch& launch, CUstream stream, void** parameters);

  // What the simulator has to know and a GPU does not: the memory that the launches to come may touch, and that a call
  // has made all of its launches.
  void declare_memory(const char* name, const void* address, uint64_t bytes, bool read_only);
  void finish_call(const std::string& what);

 private:
  CUkernel kernel(Library& library, const KernelLaunch& launch);  // looks it up at the first use
  Library& library(const std::string& stem);                      // loads it at the first use

  const DriverTable& table_;
  const int ordinal_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  DeviceProperties properties_;
  std::mutex mutex_;
  std::map<std::string, Library> libraries_;  // by stem
};

// Where launches of one call go.
struct Stream {
  Device& device;
  CUstream handle = nullptr;

  void launch(const KernelLaunch& launch, void** parameters) { device.launch(launch, handle, parameters); }
};

}  // namespace hunyuan_kernels::driver
