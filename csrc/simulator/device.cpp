// Devices and launches: checks of the configuration, arguments, the stream.
#include <algorithm>
#include <cstring>
#include <span>

#include "simulator/machine.h"
#include "simulator/simulator.h"

namespace hunyuan_kernels::simulator {
namespace {

[[noreturn]] void refuse(const Program& program, const std::string& what) {
  throw SimError("launch of kernel " + program.kernel_name + ": " + what);
}

void pack_argument(const Program& program, size_t index, const Argument& a, uint8_t* out) {
  const ParamInfo& p = program.params[index];
  auto mismatch = [&](const std::string& what) {
    refuse(program, format("argument %zu: %s, but parameter '%s' is %s of %u bytes", index, what.c_str(),
                           p.name.c_str(), p.is_float ? "a real" : "an integer, a pointer or a struct", p.bytes));
  };
  using Kind = Argument::Kind;
  const bool untyped = p.type == ScalarType::B32 || p.type == ScalarType::B64;
  if (a.kind == Kind::Bytes) {
    if (a.bytes.size() != p.bytes) mismatch(format("%zu bytes were given", a.bytes.size()));
    memcpy(out, a.bytes.data(), p.bytes);
  } else if (a.kind == Kind::Real || (a.kind == Kind::Integer && p.is_float)) {
    const double value = a.kind == Kind::Real ? a.real : (double)a.integer;
    const float single = (float)value;
    if ((!p.is_float && !untyped) || (p.bytes != 4 && p.bytes != 8)) mismatch("a real number was given");
    memcpy(out, p.bytes == 8 ? (const void*)&value : (const void*)&single, p.bytes);
  } else if (a.kind == Kind::Pointer) {
    if (p.bytes != 8 || p.is_float) mismatch("an array was given");
    memcpy(out, &a.integer, 8);
  } else {
    if (p.bytes > 8) mismatch("an integer was given");
    const int bits = (int)p.bytes * 8;
    if (bits < 64 && (a.integer >> bits) != 0 && (a.integer >> (bits - 1)) != -1)
      mismatch(format("the integer %lld was given", (long long)a.integer));
    memcpy(out, &a.integer, p.bytes);
  }
}

void check_shape(const Program& program, const LaunchConfig& config, const Options& options) {
  static const char* axes[] = {"x", "y", "z"};
  static const uint32_t grid_limits[] = {0x7fffffffu, 65535, 65535}, block_limits[] = {1024, 1024, 64};
  const FunctionAst& entry = *program.entry;
  uint64_t threads = 1, blocks = 1;
  for (int i = 0; i < 3; ++i) {
    const uint32_t grid = config.grid[i], block = config.block[i], cluster = config.cluster[i];
    if (grid < 1 || grid > grid_limits[i])
      refuse(program, format("grid dimension %s is %u, outside [1, %u]", axes[i], grid, grid_limits[i]));
    if (block < 1 || block > block_limits[i])
      refuse(program, format("block dimension %s is %u, outside [1, %u]", axes[i], block, block_limits[i]));
    if (cluster < 1 || cluster > 16)
      refuse(program, format("cluster dimension %s is %u, outside [1, 16]", axes[i], cluster));
    if (grid % cluster)
      refuse(program, format("grid dimension %s is %u, not a multiple of the cluster's %u", axes[i], grid, cluster));
    if (entry.required_threads[i] && entry.required_threads[i] != block)
      refuse(program, format("block dimension %s is %u, but the kernel requires %u (.reqntid)", axes[i], block,
                             entry.required_threads[i]));
    if (entry.required_cluster[i] && entry.required_cluster[i] != cluster)
      refuse(program, format("cluster dimension %s is %u, but the kernel requires %u (.reqnctapercluster)", axes[i],
                             cluster, entry.required_cluster[i]));
    threads *= block;
    blocks *= cluster;
  }
  if (threads > 1024) refuse(program, format("%llu threads per block, at most 1024", (unsigned long long)threads));
  if (blocks > 16) refuse(program, format("%llu blocks per cluster, at most 16", (unsigned long long)blocks));
  const uint64_t limit = uint64_t(entry.max_threads[0]) * entry.max_threads[1] * entry.max_threads[2];
  if (limit && threads > limit)
    refuse(program, format("%llu threads per block, but the kernel allows %llu (.maxntid)", (unsigned long long)threads,
                           (unsigned long long)limit));
  const uint64_t shared = uint64_t(program.static_shared_bytes) + config.shared_bytes;
  if (shared > options.max_shared_bytes)
    refuse(program, format("a block needs %llu bytes of shared memory (%u static, %u dynamic), at most %u",
                           (unsigned long long)shared, program.static_shared_bytes, config.shared_bytes,
                           options.max_shared_bytes));
}

// What must outlive a running launch.
struct PreparedLaunch {
  AllocationTable allocations;
  Options options;
  std::unique_ptr<Launch> launch;
};

const Program& check(const LaunchRequest& request) {
  const Program& program = request.module->program(request.kernel);
  if (request.arguments.size() != program.params.size())
    refuse(program, format("%zu arguments given, %zu expected", request.arguments.size(), program.params.size()));
  check_shape(program, request.config, request.options);
  std::vector<uint8_t> scratch(program.param_bytes + 8);
  for (size_t i = 0; i < request.arguments.size(); ++i)
    pack_argument(program, i, request.arguments[i], scratch.data() + program.params[i].offset);
  return program;
}

void prepare(const LaunchRequest& request, PreparedLaunch& prepared) {
  const Program& program = check(request);
  AllocationTable& allocations = prepared.allocations;
  for (auto& r : request.registered) allocations.add(r.address, r.bytes, r.name, r.read_only);
  for (size_t i = 0; i < request.arguments.size(); ++i)
    for (auto& r : request.arguments[i].ranges)
      allocations.add(r.address, r.bytes, r.name.empty() ? format("argument %zu", i) : r.name, r.read_only);
  for (auto& [name, variable] : request.module->variables())
    allocations.add(variable.address, variable.bytes, name, variable.read_only);
  allocations.finish();

  const LaunchConfig& config = request.config;
  prepared.options = request.options;
  prepared.launch = std::make_unique<Launch>(program, prepared.options, allocations);
  Launch& launch = *prepared.launch;
  memcpy(launch.grid, config.grid, sizeof(launch.grid));
  memcpy(launch.block, config.block, sizeof(launch.block));
  memcpy(launch.cluster, config.cluster, sizeof(launch.cluster));
  launch.dynamic_shared_bytes = config.shared_bytes;
  launch.shared_bytes = program.static_shared_bytes + config.shared_bytes;
  launch.params.assign((program.param_bytes + 127) / 128 * 128 + 128, 0);
  for (size_t i = 0; i < request.arguments.size(); ++i)
    pack_argument(program, i, request.arguments[i], launch.params.data() + program.params[i].offset);
}

void overlap(const std::vector<Launch*>& launches) {
  for (size_t i = 0; i < launches.size(); ++i) {
    Launch& launch = *launches[i];
    launch.overlap = std::make_unique<Overlap>();
    launch.watch_global = true;
    if (i > 0) launch.prerequisite = launches[i - 1];
    launch.overlap->earlier.assign(launches.begin(), launches.begin() + (ptrdiff_t)i);
    launch.overlap->later.assign(launches.begin() + (ptrdiff_t)i + 1, launches.end());
  }
}

// Runs the launches at the same time; `stream`: each one may begin only as the one before lets it.
std::vector<Report> run(std::span<const LaunchRequest> requests, bool stream) {
  std::vector<PreparedLaunch> prepared(requests.size());
  std::vector<Launch*> launches;
  for (size_t i = 0; i < requests.size(); ++i) {
    prepare(requests[i], prepared[i]);
    launches.push_back(prepared[i].launch.get());
  }
  if (stream && launches.size() > 1) overlap(launches);
  if (stream && requests[0].options.assume_predecessor && requests[0].config.programmatic_stream_serialization)
    launches[0]->predecessor_pending = launches[0]->watch_global = true;
  try {
    Launch::run_all(launches);
  } catch (const SimError& e) {  // what the device printed often explains the failure
    std::string text = e.what();
    for (auto* launch : launches)
      if (!launch->output.empty()) text += "\n  device output: " + launch->output;
    throw SimError(text);
  }
  std::vector<Report> reports;
  for (auto* launch : launches)
    reports.push_back(make_report(launch->program, std::move(launch->counters), std::move(launch->output)));
  return reports;
}

// The first launch from `begin` on that may not overlap those before it.
size_t end_of_overlap(const std::vector<LaunchRequest>& queue, size_t begin) {
  size_t end = begin + 1;
  while (end < queue.size() && queue[end].config.programmatic_stream_serialization) ++end;
  return end;
}

}  // namespace

std::vector<Report> launch_together(const std::vector<LaunchRequest>& requests) { return run(requests, false); }

void Device::register_memory(const void* address, uint64_t bytes, std::string name, bool read_only) {
  registered_[(uint64_t)address] = {(uint64_t)address, bytes, std::move(name), read_only};
}

void Device::unregister_memory(const void* address) { registered_.erase((uint64_t)address); }

LaunchRequest Device::request(const Module& module, const std::string& kernel, const LaunchConfig& config,
                              std::vector<Argument> arguments) const {
  LaunchRequest r;
  r.module = &module;
  r.kernel = kernel;
  r.config = config;
  r.arguments = std::move(arguments);
  for (auto& [address, range] : registered_) r.registered.push_back(range);
  r.options = options;
  return r;
}

void Device::enqueue(const Module& module, const std::string& kernel, const LaunchConfig& config,
                     std::vector<Argument> arguments) {
  LaunchRequest r = request(module, kernel, config, std::move(arguments));
  check(r);
  queue_.push_back(std::move(r));
}

std::vector<Report> Device::synchronize() {
  std::vector<LaunchRequest> queue = std::move(queue_);
  queue_.clear();
  std::vector<Report> reports;
  for (size_t begin = 0, end; begin < queue.size(); begin = end) {
    end = end_of_overlap(queue, begin);
    for (auto& report : run(std::span(queue).subspan(begin, end - begin), true)) reports.push_back(std::move(report));
  }
  return reports;
}

Report Device::launch(const Module& module, const std::string& kernel, const LaunchConfig& config,
                      std::vector<Argument> arguments) {
  enqueue(module, kernel, config, std::move(arguments));
  return std::move(synchronize().back());
}

}  // namespace hunyuan_kernels::simulator
