// Choice of the instruction set by CPU features.
#include "cpu/isa/microkernels.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "common/check.h"
#include "cpu/isa/tables.h"

namespace hunyuan_kernels::cpu {
namespace {

struct Candidate {
  const Microkernels* table;
  bool runs_here;
};

// Best first.
const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> list = [] {
    std::vector<Candidate> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
                  __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
    bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
    found.push_back({&avx512_bf16_microkernels, avx512_bf16});
    found.push_back({&avx512_microkernels, avx512});
    // Intel's cores (measured: Emerald Rapids) take 2 cycles for a bf16 dot product and do two fp32 multiply-adds in
    // each: half the speed. On Zen 4 it is the other way round.
    if (__builtin_cpu_is("intel")) std::swap(found[0], found[1]);
    found.push_back({&avx2_microkernels, avx2});
#elif defined(__aarch64__)
    // Of Linux, HWCAP2_BF16; the headers of older systems do not name it.
    found.push_back({&neon_bf16_microkernels, (getauxval(AT_HWCAP2) >> 14 & 1) != 0});
    found.push_back({&neon_microkernels, true});
#endif
    found.push_back({&portable_microkernels, true});
    return found;
  }();
  return list;
}

const Candidate* find(const char* name) {
  for (const Candidate& candidate : candidates())
    if (std::strcmp(candidate.table->name, name) == 0) return &candidate;
  return nullptr;
}

const Microkernels& default_table();

// With only_supported those that run here; one that the environment chose counts.
std::string names(bool only_supported) {
  std::string joined;
  for (const Candidate& candidate : candidates())
    if (candidate.runs_here || !only_supported || candidate.table == &default_table())
      joined += (joined.empty() ? "" : ",") + std::string(candidate.table->name);
  return joined;
}

const Microkernels& default_table() {
  static const Microkernels* table = [] {
    if (const char* name = std::getenv("HUNYUAN_KERNELS_ISA"); name && *name) {
      const Candidate* chosen = find(name);
      check(chosen, "HUNYUAN_KERNELS_ISA", "is", "'", name, "', but this build has: ", names(false));
      return chosen->table;
    }
    for (const Candidate& candidate : candidates())
      if (candidate.runs_here) return candidate.table;
    return &portable_microkernels;
  }();
  return *table;
}

thread_local const Microkernels* forced = nullptr;

}  // namespace

const Microkernels& microkernels() { return forced ? *forced : default_table(); }

void force_instruction_set(const char* name) {
  if (!*name) {
    forced = nullptr;
    return;
  }
  const Candidate* chosen = find(name);
  check(chosen && (chosen->runs_here || chosen->table == &default_table()), "instruction_set", "name", "is '", name,
        "', but this CPU runs: ", names(true));
  forced = chosen->table;
}

const char* supported_instruction_sets() {
  static const std::string joined = names(true);
  return joined.c_str();
}

}  // namespace hunyuan_kernels::cpu
