#include "host/product_plan.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <sstream>
#include <utility>

#include "common/check.h"
#include "common/integer_math.h"
#include "host/tensor_map.h"

namespace hunyuan_kernels::host {
namespace {

// The model of the GPU: what the H100's data sheet says per clock of 1.755 GHz, not measured. An SM has 4 tensor cores
// x 512 bf16 (1024 e4m3) multiply-adds, and 64 bytes from L2; all of them share 3.35 TB/s.
constexpr double kBf16FlopsPerClock = 4096, kBytesPerClock = 64, kMemoryBytesPerClock = 3.35e12 / 1.755e9;
// Clocks of an addition across a cluster: two rounds of barriers and remote reads, about 1 us. A guess until measured.
constexpr double kClusterSumClocks = 2000;
// e4m3 weights that become bf16: two conversions each, 64 of them per clock by the CUDA programming guide's table.
constexpr double kExpansionsPerClock = 32;

// The kernels count rows, columns and tiles in 32 bits and go past the last one by less than a tile.
constexpr int64_t kMaxExtent = std::numeric_limits<int32_t>::max() - 512;

// The most tiles of this many rows that so many groups with so many rows in all can have.
int64_t most_row_tiles(int64_t rows, int64_t groups, int64_t tile_rows) {
  const int64_t used = minimum(rows, groups);  // each with one row
  return used + (rows - used) / tile_rows;
}
int64_t likely_row_tiles(int64_t rows, int64_t groups, int64_t tile_rows) {
  const int64_t used = minimum(rows, groups);
  return used ? used * ceil_div(ceil_div(rows, used), tile_rows) : 0;
}

// Tiles below each other that share the SMs with those of the next columns: h rows of tiles and sms / h columns of them
// load the fewest different bytes when h * tile_rows = (sms / h) * tile_columns. A power of two below that. The other
// way around with the two exchanged.
int panel_height(int64_t tile_rows, int64_t tile_columns, int64_t sms) {
  int height = 1;
  while (4 * height * height * tile_rows <= sms * tile_columns) height *= 2;
  return height;
}

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", value);
  return text;
}

// Clusters of this many blocks that the GPU holds at a time. A cluster lies within one GPC, and those of the H100 have
// 16 or 18 SMs: with 4 or 8 blocks two SMs of 18 are left over. More clusters than fit would make a second wave of a
// persistent kernel.
int64_t resident_clusters(int64_t sms, int64_t cluster) {
  return cluster <= 2 || sms < 16 ? maximum(sms / cluster, 1) : sms / 16 * (16 / cluster);
}

void estimate(const ProductShape& s, int64_t sms, ProductCandidate& c) {
  if (!c.illegal.empty()) return;
  const int64_t clusters = maximum(c.cluster, 1);
  const int64_t across = round_up(ceil_div(s.columns, c.tile_columns / s.parts), c.multicast);
  const int64_t gradient_tiles = s.groups * ceil_div(s.lines, c.tile_rows);
  c.tiles = across * (s.weight_gradient ? gradient_tiles : most_row_tiles(s.rows, s.groups + s.rest, c.tile_rows));
  c.likely_tiles = across * (s.weight_gradient ? gradient_tiles : likely_row_tiles(s.rows, s.groups, c.tile_rows));
  c.waves = ceil_div(c.likely_tiles / c.multicast, resident_clusters(sms, clusters * c.multicast));
  const int64_t depth = s.weight_gradient ? ceil_div(s.rows, maximum(s.groups, 1)) : s.depth;
  const int64_t blocks = ceil_div(depth, s.tile_depth);
  const auto size = static_cast<double>(element_size(s.operands));
  const double block_flops = 2.0 * c.tile_rows * c.tile_columns * s.tile_depth;
  const double weight_size = s.e4m3_weights ? 1 : size;
  const double block_bytes = (size * c.tile_rows / c.multicast + weight_size * c.tile_columns) * s.tile_depth;
  c.flops = static_cast<double>(c.likely_tiles * blocks) * block_flops;
  c.bytes = static_cast<double>(c.likely_tiles * blocks) * block_bytes;
  const double flops_per_clock = kBf16FlopsPerClock * 2 / size;
  double block_clocks = std::fmax(block_flops / flops_per_clock, block_bytes / kBytesPerClock);
  if (s.e4m3_weights)
    block_clocks = std::fmax(block_clocks, static_cast<double>(c.tile_columns * s.tile_depth) / kExpansionsPerClock);
  // A block does not multiply while it stores; what it stores passes through L2 as well.
  double end_clocks = static_cast<double>(c.tile_rows * c.tile_columns * element_size(s.out)) / kBytesPerClock;
  if (c.cluster > 1) end_clocks += kClusterSumClocks;
  c.sm_clocks =
      static_cast<double>(c.waves) * (static_cast<double>(ceil_div(blocks, clusters)) * block_clocks + end_clocks);
  const auto weights = static_cast<double>(minimum(s.rows, s.groups)) * static_cast<double>(s.columns * s.parts) *
                       static_cast<double>(s.depth);
  c.memory_clocks = s.weight_gradient ? 0 : weight_size * weights / kMemoryBytesPerClock;
}

}  // namespace

ProductOptions ProductOptions::of(const char* op, const std::string& names) {
  ProductOptions options;
  std::istringstream rest(names);
  for (std::string name; std::getline(rest, name, ',');) {
    bool* option = name == "multicast"       ? &options.multicast
                   : name == "column_panels" ? &options.column_panels
                                             : nullptr;
    check(option, op, "options", "has '", name, "'; allowed: multicast, column_panels, with commas between them");
    *option = true;
  }
  return options;
}

void ProductChoice::take_best(const ProductShape& shape, int64_t sms, const ProductOptions& options) {
  tile_depth = shape.tile_depth;
  for (ProductCandidate& c : candidates) {
    estimate(shape, sms, c);
    check_extent(shape.op, "number of tiles", c.tiles);
  }
  // Where memory decides, the SMs that have least to do leave it the most time.
  auto cost = [](const ProductCandidate& c) { return std::pair(c.clocks(), c.sm_clocks); };
  for (size_t i = 0; i < candidates.size(); ++i)
    if (candidates[i].illegal.empty() &&
        (!candidates[taken].illegal.empty() || cost(candidates[i]) < cost(candidates[taken])))
      taken = i;
  const ProductCandidate& c = candidate();
  column_panels = options.column_panels && !c.cluster;
  const int64_t rows = c.tile_rows, columns = c.tile_columns * c.multicast, places = sms / c.multicast;
  panel_tiles = column_panels ? panel_height(columns, rows, places) : panel_height(rows, columns, places);
}

std::string ProductChoice::lines() const {
  std::string text;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const ProductCandidate& c = candidates[i];
    text += "\n  tile " + std::to_string(c.tile_rows) + " x " + std::to_string(c.tile_columns) + " x " +
            std::to_string(tile_depth);
    if (c.cluster) text += ", depth over " + std::to_string(c.cluster);
    if (c.multicast > 1) text += ", rows to " + std::to_string(c.multicast) + " blocks by multicast";
    if (!c.illegal.empty()) {
      text += ": not possible: " + c.illegal;
      continue;
    }
    text += ": at most " + std::to_string(c.tiles) + " tiles; groups of equal size: " + std::to_string(c.likely_tiles) +
            " tiles, " + std::to_string(c.waves) + " waves, " + short_number(c.flops) + " flops, " +
            short_number(c.bytes) + " bytes loaded, " + short_number(c.sm_clocks) + " clocks, memory " +
            short_number(c.memory_clocks);
    if (i != taken) continue;
    text += " <- taken";
    if (c.cluster) continue;
    text += ", panels of " + std::to_string(panel_tiles) + " tiles " +
            (column_panels ? "side by side" : "below each other");
  }
  for (const driver::KernelLaunch& launch : launches) text += "\n  " + launch.text();
  return text;
}

driver::KernelLaunch ProductChoice::launch_of(int64_t sms) const {
  const ProductCandidate& c = candidate();
  const int64_t cluster = maximum(c.cluster, 1) * c.multicast;
  driver::KernelLaunch launch;
  launch.grid.x = static_cast<uint32_t>(cluster * minimum(resident_clusters(sms, cluster), c.tiles / c.multicast));
  launch.cluster.x = static_cast<uint32_t>(cluster);
  return launch;
}

void check_extent(const char* op, const char* what, int64_t value) {
  check(value <= kMaxExtent, op, what, "is ", value, "; on a GPU at most ", kMaxExtent, " are supported");
}

int64_t padded_columns(int64_t columns, DType out) {
  return round_up(columns, kTensorMapAlignment / element_size(out));
}

std::string extents_text(std::initializer_list<int64_t> sizes) {
  std::string text;
  for (int64_t size : sizes) {
    text += text.empty() ? "[" : ", ";
    text += std::to_string(size);
  }
  return text + "]";
}

}  // namespace hunyuan_kernels::host
