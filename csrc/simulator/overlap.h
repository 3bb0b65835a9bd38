// Programmatic dependent launch: a launch may begin when every block of the one before has executed
// griddepcontrol.launch_dependents or has exited, and griddepcontrol.wait waits until that one is complete. What a
// launch touches while an earlier one is not complete must not be memory that this one writes, nor be written when it
// reads it, at any time.
#pragma once
#include <cstdint>
#include <vector>

#include "simulator/paged_shadow.h"

namespace hunyuan_kernels::simulator {

class Launch;
class Warp;
struct Instr;

struct Footprint {
  struct Access {
    const Instr* instr = nullptr;  // null: never
    uint32_t block = 0;
    uint16_t warp = 0;
    int16_t lane = 0;
    uint8_t mask = 0;
  };
  Access read, write;  // the latest; masks collect all
};

struct Overlap {
  std::vector<Launch*> earlier, later;  // launches of the stream that this one may overlap
  PagedShadow<Footprint> accesses;      // of this launch, while it may overlap another
};

// Records an access and raises when it conflicts with one of a launch that overlaps.
void overlap_access(Warp& warp, const Instr& instr, int lane, uint64_t address, uint64_t bytes, bool write);

}  // namespace hunyuan_kernels::simulator
