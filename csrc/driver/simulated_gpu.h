// The driver table from the simulator.
#pragma once
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "driver/kernel_launch.h"
#include "driver/table.h"
#include "simulator/simulator.h"

namespace hunyuan_kernels::driver {

// The functions act on the GPU that is current on the calling thread (SimulatedGpu::Current). What the simulator
// refuses or finds becomes an error code; cuGetErrorString has its text until the thread's next call.
const DriverTable& simulated_driver();

class SimulatedGpu {
 public:
  explicit SimulatedGpu(const simulator::Options& options) : device_(options) {}
  ~SimulatedGpu();  // the thread has none afterwards
  SimulatedGpu(const SimulatedGpu&) = delete;

  // Null: the thread has none.
  static void make_current(SimulatedGpu* gpu);
  // Where this PTX text is loaded from now on, `module` is, which lives as long as the GPU: a kernel that was changed.
  void substitute(const std::string& ptx, const simulator::Module& module) { substitutes_[ptx] = &module; }

  struct CompletedLaunch {
    Extent grid, block, cluster;
    simulator::Report report;
  };
  // In order, each once.
  const std::vector<CompletedLaunch>& completed() const { return completed_; }
  // What the simulator found wrong with launches, as text. Those launches are not among the completed ones.
  const std::vector<std::string>& findings() const { return findings_; }

  // What the table does, with exceptions instead of codes.
  int attribute(CUdevice_attribute which) const;
  CUlibrary load(const char* ptx);
  CUkernel find_kernel(CUlibrary library, const std::string& name);
  void set_attribute(CUkernel kernel, CUfunction_attribute attribute, int value);
  void enqueue(const CUlaunchConfig& config, CUkernel kernel, void** parameters);
  void declare_memory(const void* address, uint64_t bytes, const char* name, bool read_only);
  void run_queue();

 private:
  struct Kernel {
    const simulator::Module* module;
    simulator::KernelInfo info;
    int dynamic_shared_bytes = 48 * 1024;  // allowed without asking, static ones included
    bool large_clusters = false;           // more than 8 blocks
  };

  void forget_call();

  simulator::Device device_;
  std::list<std::shared_ptr<const simulator::Module>> modules_;
  std::map<std::string, const simulator::Module*, std::less<>> substitutes_;
  std::list<Kernel> kernels_;
  std::vector<CompletedLaunch> queued_, completed_;
  std::vector<const void*> declared_;
  std::vector<std::string> findings_;
};

}  // namespace hunyuan_kernels::driver
