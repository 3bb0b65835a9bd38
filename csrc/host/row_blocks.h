// Launches of kernels that go by the rows of a matrix (kernels/row_blocks.h).
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/check.h"
#include "common/integer_math.h"
#include "driver/kernel_launch.h"
#include "kernels/row_blocks.h"

namespace hunyuan_kernels::host {

// Sets grid and block of a launch over rows of `vectors` vectors: enough threads that each has one round of loads in
// flight, in whole warps; short rows share a block. Raises when there are more rows than a launch can have.
inline void set_row_blocks(driver::KernelLaunch& launch, const char* op, int64_t rows, int64_t vectors) {
  const int64_t threads =
      std::clamp<int64_t>(round_up(ceil_div(vectors, kernels::kRowVectors), 32), 32, kernels::kRowBlockThreads);
  const int64_t per_block = minimum(kernels::kRowBlockThreads / threads, rows), blocks = ceil_div(rows, per_block);
  check(blocks < (int64_t{1} << 31), op, "rows", "are ", rows, ": ", blocks,
        " blocks; at most 2^31 - 1 can be launched");
  launch.grid.x = static_cast<uint32_t>(blocks);
  launch.block = {static_cast<uint32_t>(threads), static_cast<uint32_t>(per_block), 1};
}

}  // namespace hunyuan_kernels::host
