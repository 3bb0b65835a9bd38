#include "simulator/counters.h"

#include <algorithm>

#include "simulator/program.h"

namespace hunyuan_kernels::simulator {

const char* to_string(InstrClass cls) {
  static const char* names[] = {
      "integer",   "float",     "convert", "move",     "predicate", "control",  "ld.global",       "st.global",
      "ld.shared", "st.shared", "local",   "param",    "generic",   "atomic",   "warp-collective", "ldmatrix/stmatrix",
      "mma",       "wgmma",     "tma",     "cp.async", "barrier",   "mbarrier", "fence",           "other"};
  return names[(int)cls];
}

void Counters::global_access(bool store, const uint64_t* addresses, uint32_t count, uint32_t bytes) {
  uint64_t sectors[64 * 2];
  uint32_t n = 0;
  bool sorted = true;
  for (uint32_t i = 0; i < count; ++i) {
    for (uint64_t s = addresses[i] >> 5; s <= (addresses[i] + bytes - 1) >> 5; ++s) {
      if (n && sectors[n - 1] == s) continue;
      if (n && sectors[n - 1] > s) sorted = false;
      sectors[n++] = s;
    }
  }
  if (!sorted) {
    std::sort(sectors, sectors + n);
    n = (uint32_t)(std::unique(sectors, sectors + n) - sectors);
  }
  uint64_t total = uint64_t(bytes) * count;
  uint64_t ideal = (total + 31) / 32;
  if (store) {
    ++global_store_requests;
    global_store_sectors += n;
    global_store_ideal_sectors += std::min<uint64_t>(ideal, n);
    global_store_bytes += total;
  } else {
    ++global_load_requests;
    global_load_sectors += n;
    global_load_ideal_sectors += std::min<uint64_t>(ideal, n);
    global_load_bytes += total;
  }
}

void Counters::shared_access(int kind, const uint64_t* addresses, uint32_t count, uint32_t bytes) {
  SharedAccess& entry = shared[kind];
  ++entry.requests;
  // Wide accesses are served in passes of 32 / (bytes / 4) lanes.
  uint32_t words = std::max(1u, bytes / 4), lanes_per_pass = 32 / words;
  for (uint32_t first = 0; first < count; first += lanes_per_pass) {
    uint32_t per_bank[32] = {};
    uint32_t seen[128], n = 0, worst = 0;
    for (uint32_t i = first; i < std::min(count, first + lanes_per_pass); ++i) {
      for (uint32_t w = 0; w < words; ++w) {
        uint32_t word = (uint32_t)(addresses[i] / 4) + w;
        uint32_t bank = word % 32;
        bool duplicate = false;
        if (per_bank[bank])
          for (uint32_t k = 0; k < n && !duplicate; ++k) duplicate = seen[k] == word;
        if (duplicate) continue;
        seen[n++] = word;
        worst = std::max(worst, ++per_bank[bank]);
      }
    }
    entry.wavefronts += worst;
    entry.extra_wavefronts += worst ? worst - 1 : 0;
  }
}

Report make_report(const Program& program, Counters&& counters, std::string output) {
  Report r;
  r.kernel = program.kernel_name;
  r.output = std::move(output);
  for (size_t i = 0; i < program.code.size(); ++i) {
    if (!counters.issued[i]) continue;
    r.warp_instructions += counters.issued[i];
    r.lane_instructions += counters.lanes[i];
    r.by_opcode[program.opcode_names[program.code[i].opcode_index]] += counters.issued[i];
    r.by_class[to_string(program.code[i].cls)] += counters.issued[i];
    r.by_line[program.code[i].line] += counters.issued[i];
  }
  r.counters = std::move(counters);
  return r;
}

std::string Report::str() const {
  const Counters& c = counters;
  auto u = [](uint64_t v) { return (unsigned long long)v; };
  std::string s = format("kernel %s\n", kernel.c_str());
  s += format(
      "  blocks %llu, warps %llu, warp instructions %llu (%.1f per warp), lane instructions %llu, %.3f s, %.1f M "
      "lane-instr/s\n",
      u(c.blocks), u(c.warps), u(warp_instructions), c.warps ? double(warp_instructions) / c.warps : 0.0,
      u(lane_instructions), c.seconds, c.seconds > 0 ? lane_instructions / c.seconds * 1e-6 : 0.0);
  s += "  by class:";
  for (auto& [name, n] : by_class) s += format(" %s=%llu", name.c_str(), u(n));
  s += "\n";
  s += format("  global loads:  %llu requests, %llu sectors (ideal %llu), %llu bytes\n", u(c.global_load_requests),
              u(c.global_load_sectors), u(c.global_load_ideal_sectors), u(c.global_load_bytes));
  s += format("  global stores: %llu requests, %llu sectors (ideal %llu), %llu bytes\n", u(c.global_store_requests),
              u(c.global_store_sectors), u(c.global_store_ideal_sectors), u(c.global_store_bytes));
  for (int k = 0; k < Counters::SharedKinds; ++k) {
    static const char* names[] = {"ld 1B", "ld 2B", "ld 4B",  "ld 8B",    "ld 16B",   "st 1B", "st 2B",
                                  "st 4B", "st 8B", "st 16B", "ldmatrix", "stmatrix", "atomic"};
    auto& a = c.shared[k];
    if (a.requests)
      s += format("  shared %-9s %llu requests, %llu wavefronts, %llu extra (bank conflicts)\n", names[k],
                  u(a.requests), u(a.wavefronts), u(a.extra_wavefronts));
  }
  s += format("  TMA: %llu loads (%llu bytes), %llu stores (%llu bytes); cp.async %llu bytes\n", u(c.tma_loads),
              u(c.tma_load_bytes), u(c.tma_stores), u(c.tma_store_bytes), u(c.cp_async_bytes));
  for (auto& [kind, n] : c.mma_count) {
    auto flops = c.mma_flops.find(kind);
    s += format("  %s: %llu warp-level, %.6f GFLOP\n", kind.c_str(), u(n),
                flops == c.mma_flops.end() ? 0.0 : flops->second * 1e-9);
  }
  s += format("  waits: barrier %llu, mbarrier %llu, cluster %llu; fences %llu, proxy fences %llu; atomics %llu\n",
              u(c.barrier_waits), u(c.mbarrier_waits), u(c.cluster_barrier_waits), u(c.fences), u(c.proxy_fences),
              u(c.atomic_requests));
  return s;
}

}  // namespace hunyuan_kernels::simulator
