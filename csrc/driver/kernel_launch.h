// One launch as a plan describes it: plain values, printable, comparable.
#pragma once
#include <cstdint>
#include <string>

namespace hunyuan_kernels::driver {

struct Extent {
  uint32_t x = 1, y = 1, z = 1;
  bool operator==(const Extent&) const = default;
};

struct KernelLaunch {
  std::string stem;    // which device image, such as "quantize"
  std::string kernel;  // entry name in it
  Extent grid, block, cluster;
  uint32_t shared_bytes = 0;  // dynamic
  // May start before the previous kernel of the stream has ended; the kernel waits (griddepcontrol.wait) before it
  // touches memory.
  bool programmatic = true;

  bool operator==(const KernelLaunch&) const = default;
  std::string text() const;  // "quantize_row_bfloat16 grid 64x1x1 block 256x1x1"
};

}  // namespace hunyuan_kernels::driver
