// The simulator's interface: modules of PTX text, simulated devices and launches. It executes PTX for sm_90a on the CPU
// and needs neither CUDA nor torch; docs/simulator.md says what is exact, what is approximate and what it cannot know.
//
// Device memory is host memory: global addresses are host addresses, and a kernel may touch exactly the ranges that the
// device has been told of (Device::register_memory, Argument::ranges, variables of the module).
//
// Everything that is refused or found wrong is a SimError whose text names the kernel, the PTX line and the
// instruction.
#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "simulator/counters.h"
#include "simulator/error.h"
#include "simulator/options.h"
#include "simulator/tensor_map.h"

namespace hunyuan_kernels::simulator {

struct Program;
struct ModuleContents;

struct KernelParameter {
  std::string name;
  uint32_t offset = 0;  // within the parameter block
  uint32_t bytes = 0;
};

struct KernelInfo {
  std::string name;
  std::vector<KernelParameter> parameters;
  uint32_t parameter_bytes = 0;
  uint32_t static_shared_bytes = 0;
  uint32_t max_threads = 1024;               // per block: .maxntid or .reqntid, else the hardware limit
  uint32_t required_block[3] = {0, 0, 0};    // .reqntid; 0 where the kernel leaves it open
  uint32_t required_cluster[3] = {0, 0, 0};  // .reqnctapercluster
};

// A module-level .global or .const variable. It keeps its value between launches.
struct ModuleVariable {
  uint64_t address = 0;
  uint64_t bytes = 0;
  bool read_only = false;
};

// One PTX file. Kernels are decoded when they are first asked for; several threads may use one module.
class Module {
 public:
  explicit Module(std::string ptx);
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  std::vector<std::string> kernel_names() const;
  // By exact name or unique substring. Raises for a missing or ambiguous name and for an unsupported instruction.
  KernelInfo kernel_info(const std::string& name) const;
  const ModuleVariable* find_variable(const std::string& name) const;  // null when there is none
  const std::map<std::string, ModuleVariable>& variables() const;

  const Program& program(const std::string& name) const;  // the simulator's own decoded form

 private:
  std::unique_ptr<ModuleContents> contents_;
};

struct MemoryRange {
  uint64_t address = 0;
  uint64_t bytes = 0;
  std::string name;  // appears in messages
  bool read_only = false;
};

// One kernel argument. Integers, reals and pointers are converted to the parameter's type; bytes must have its size.
struct Argument {
  enum class Kind { Integer, Real, Pointer, Bytes } kind = Kind::Integer;
  int64_t integer = 0;
  double real = 0;
  std::vector<uint8_t> bytes;
  std::vector<MemoryRange> ranges;  // memory that becomes accessible to this launch

  static Argument of_bytes(const void* data, size_t size) {
    Argument argument;
    argument.kind = Kind::Bytes;
    argument.bytes.assign(static_cast<const uint8_t*>(data), static_cast<const uint8_t*>(data) + size);
    return argument;
  }
};

struct LaunchConfig {
  uint32_t grid[3] = {1, 1, 1}, block[3] = {1, 1, 1}, cluster[3] = {1, 1, 1};
  uint32_t shared_bytes = 0;  // dynamic
  // The launch may begin before the previous one of its device has completed (programmatic dependent launch).
  bool programmatic_stream_serialization = false;
};

struct LaunchRequest {
  const Module* module = nullptr;
  std::string kernel;
  LaunchConfig config;
  std::vector<Argument> arguments;
  std::vector<MemoryRange> registered;
  Options options;
};

// A simulated GPU with one stream: launches run in the order in which they were enqueued.
class Device {
 public:
  Device() = default;
  explicit Device(const Options& options) : options(options) {}
  Options options;

  // Makes memory accessible to later launches. Ranges that touch or overlap act as one.
  void register_memory(const void* address, uint64_t bytes, std::string name, bool read_only = false);
  void unregister_memory(const void* address);

  // Checks the launch, raises what a driver would refuse, and queues it. The module must outlive its execution.
  void enqueue(const Module& module, const std::string& kernel, const LaunchConfig& config,
               std::vector<Argument> arguments);
  // Runs what is queued; one report per launch. After an error the queue is empty.
  std::vector<Report> synchronize();
  // Forgets what is queued.
  void discard_queue() { queue_.clear(); }
  // enqueue and synchronize; the report of this launch (the last one).
  Report launch(const Module& module, const std::string& kernel, const LaunchConfig& config,
                std::vector<Argument> arguments);

  LaunchRequest request(const Module& module, const std::string& kernel, const LaunchConfig& config,
                        std::vector<Argument> arguments) const;

 private:
  std::map<uint64_t, MemoryRange> registered_;
  std::vector<LaunchRequest> queue_;
};

// Runs the kernels at the same time, each on its own simulated device. Memory that several requests register is shared.
std::vector<Report> launch_together(const std::vector<LaunchRequest>& requests);

}  // namespace hunyuan_kernels::simulator
