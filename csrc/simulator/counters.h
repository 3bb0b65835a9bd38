// Event counters gathered during a launch.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace hunyuan_kernels::simulator {

struct Program;

struct Counters {
  std::vector<uint64_t> issued;  // per static instruction
  std::vector<uint64_t> lanes;   // per static instruction: active lanes

  uint64_t warps = 0, blocks = 0;
  uint64_t global_load_requests = 0, global_store_requests = 0;
  uint64_t global_load_sectors = 0, global_store_sectors = 0;
  uint64_t global_load_ideal_sectors = 0, global_store_ideal_sectors = 0;
  uint64_t global_load_bytes = 0, global_store_bytes = 0;
  uint64_t atomic_requests = 0;
  struct SharedAccess {
    uint64_t requests = 0, wavefronts = 0, extra_wavefronts = 0;
  };
  enum SharedKind { Load = 0, Store = 5, LdMatrix = 10, StMatrix = 11, SharedAtomic = 12, SharedKinds = 13 };
  SharedAccess shared[SharedKinds];  // Load/Store + log2(bytes)
  uint64_t tma_load_bytes = 0, tma_store_bytes = 0, tma_loads = 0, tma_stores = 0, cp_async_bytes = 0;
  std::map<std::string, uint64_t> mma_count;
  std::map<std::string, uint64_t> mma_flops;
  uint64_t barrier_waits = 0, mbarrier_waits = 0, cluster_barrier_waits = 0, fences = 0, proxy_fences = 0;
  double seconds = 0;

  // Adds one warp-wide global access (addresses of the active lanes).
  void global_access(bool store, const uint64_t* addresses, uint32_t count, uint32_t bytes);
  // Adds one warp-wide shared access; wavefronts follow the 32-bank rule.
  void shared_access(int kind, const uint64_t* addresses, uint32_t count, uint32_t bytes);
};

struct Report {
  std::string kernel;
  uint64_t warp_instructions = 0, lane_instructions = 0;
  std::map<std::string, uint64_t> by_class, by_opcode;
  std::map<uint32_t, uint64_t> by_line;  // PTX line -> warp instructions issued (coverage, hot spots)
  Counters counters;
  std::string output;  // device printf
  std::string str() const;
};

Report make_report(const Program& program, Counters&& counters, std::string output);

}  // namespace hunyuan_kernels::simulator
