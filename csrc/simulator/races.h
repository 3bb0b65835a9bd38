// Optional happens-before race detection on shared memory (vector clocks per warp).
#pragma once
#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace hunyuan_kernels::simulator {

class Warp;
struct Cta;
struct Instr;

using VectorClock = std::vector<uint32_t>;  // indexed by resident warp

inline void join_clock(VectorClock& into, const VectorClock& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

// Last accesses of one 4-byte granule.
struct RaceInfo {
  uint32_t writer = 0, write_clock = 0;  // warp index + 1
  uint32_t write_line = 0, read_line = 0;
  uint32_t reader = 0, read_clock = 0;    // most recent reader
  uint8_t write_mask = 0, read_mask = 0;  // bytes of the granule
  std::vector<std::pair<uint32_t, uint32_t>>* other_readers = nullptr;
};

// Release: the warp's clock flows into a synchronization object; acquire: back into a warp.
void race_release(Warp& warp, VectorClock& object);
void race_acquire(Warp& warp, const VectorClock& object);
// Checks and records an access by a warp; strong (volatile, atomic, acquire/release) accesses synchronize instead.
void race_access(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes, bool write);
// An asynchronous copy issued by the warp will overwrite the range.
void race_async_write(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes);

}  // namespace hunyuan_kernels::simulator
