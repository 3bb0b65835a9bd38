#include "host/fp8_gemm.h"

#include <cmath>

#include "common/check.h"
#include "host/matrix_tiles.h"
#include "host/tensor_map.h"
#include "kernels/fp8_gemm_arguments.h"

namespace hunyuan_kernels::host {
namespace {

constexpr int64_t kTileRows = kernels::kGroupedGemmTileRows, kTileDepth = kernels::kFp8GemmTileDepth;

// The model of the GPU, as in host/grouped_gemm.cpp: an SM has 4 tensor cores x 1024 e4m3 multiply-adds, and 64 bytes
// from L2 per clock.
constexpr double kFlopsPerClock = 8192, kBytesPerClock = 64;

const char* name_of(const Fp8GemmProblem& p) {
  if (p.swiglu) return "grouped_swiglu_fp8";
  return p.grouped ? "grouped_gemm_fp8" : "fp8_gemm";
}

int64_t result_columns(const Fp8GemmProblem& p) { return p.swiglu ? p.columns / 2 : p.columns; }

void estimate(const Fp8GemmProblem& p, int64_t sms, Fp8GemmCandidate& c) {
  if (p.swiglu && c.tile_columns != 256) c.illegal = "gate and up make tiles of 256 columns only";
  if (!c.illegal.empty()) return;
  const int64_t across = ceil_div(result_columns(p), p.swiglu ? c.tile_columns / 2 : c.tile_columns);
  c.tiles = across * most_row_tiles(p.rows, p.grouped ? p.experts + 1 : 1, kTileRows);  // and the rest
  c.likely_tiles = across * likely_row_tiles(p.rows, p.experts, kTileRows);
  c.waves = ceil_div(c.likely_tiles, sms);
  const auto rows = static_cast<double>(kTileRows), columns = static_cast<double>(c.tile_columns);
  const auto depth = static_cast<double>(kTileDepth);
  const double block_clocks =
      std::fmax(2 * rows * columns * depth / kFlopsPerClock, (rows + columns) * depth / kBytesPerClock);
  const double end_clocks = rows * columns * static_cast<double>(element_size(p.out)) / kBytesPerClock;
  c.clocks =
      static_cast<double>(c.waves) * (static_cast<double>(ceil_div(p.depth, kTileDepth)) * block_clocks + end_clocks);
}

}  // namespace

int64_t row_columns(const Fp8GemmProblem& p) {
  return round_up(result_columns(p), kTensorMapAlignment / element_size(p.out));
}

Fp8GemmPlan plan_fp8_gemm(const Fp8GemmProblem& problem, const driver::DeviceProperties& device) {
  Fp8GemmPlan plan;
  plan.problem = problem;
  auto limit = [&](const char* what, int64_t value) {
    check(value <= kMaxExtent, name_of(problem), what, "is ", value, "; on a GPU at most ", kMaxExtent,
          " are supported");
  };
  limit("number of rows", problem.rows);
  limit("number of columns", problem.columns);
  limit("depth", problem.depth);
  limit("number of experts", problem.experts);
  for (int tile_columns : {256, 128}) plan.candidates.push_back({tile_columns});
  for (Fp8GemmCandidate& c : plan.candidates) {
    estimate(problem, device.sms, c);
    limit("number of tiles", c.tiles);
  }
  if (plan.candidates[1].illegal.empty() && plan.candidates[1].clocks < plan.candidates[0].clocks) plan.taken = 1;
  const Fp8GemmCandidate& c = plan.candidates[plan.taken];
  plan.panel_tiles = panel_height(kTileRows, c.tile_columns, device.sms);
  if (c.tiles == 0) return plan;
  driver::KernelLaunch launch;
  launch.stem = "fp8_gemm";
  launch.kernel = std::string("fp8_gemm_") + (problem.swiglu ? "swiglu" : "rows_" + std::to_string(c.tile_columns)) +
                  (problem.out == DType::float32 ? "_float32" : "_bfloat16") + (problem.in_blocks ? "_blocks" : "");
  launch.block.x = kernels::kGroupedGemmThreads;
  launch.shared_bytes = kernels::kGroupedGemmSharedBytes;
  launch.grid.x = static_cast<uint32_t>(minimum(int64_t{device.sms}, c.tiles));
  plan.launches.push_back(launch);
  return plan;
}

std::string Fp8GemmPlan::text() const {
  const Fp8GemmProblem& p = problem;
  std::string text = std::string(name_of(p)) + " " + extents_text({p.rows, p.depth}) + " x ";
  text += p.grouped ? extents_text({p.experts, p.columns, p.depth}) : extents_text({p.columns, p.depth});
  text += " -> " + extents_text({p.rows, result_columns(p)}) + (p.out == DType::float32 ? " float32" : " bfloat16");
  text += p.in_blocks ? ", scales of blocks" : ", scales of rows and columns";
  for (size_t i = 0; i < candidates.size(); ++i) {
    const Fp8GemmCandidate& c = candidates[i];
    text += "\n  tile " + std::to_string(kTileRows) + " x " + std::to_string(c.tile_columns) + " x " +
            std::to_string(kTileDepth);
    if (!c.illegal.empty()) {
      text += ": not possible: " + c.illegal;
      continue;
    }
    text += ": at most " + std::to_string(c.tiles) + " tiles; groups of equal size: " + std::to_string(c.likely_tiles) +
            " tiles, " + std::to_string(c.waves) + " waves, " + short_number(c.clocks) + " clocks";
    if (i == taken) text += " <- taken, panels of " + std::to_string(panel_tiles) + " tiles";
  }
  for (const driver::KernelLaunch& launch : launches) text += "\n  " + launch.text();
  return text;
}

void launch_fp8_gemm(const Fp8GemmPlan& plan, const Fp8GemmPointers& pointers, driver::Stream& stream) {
  if (plan.launches.empty()) return;
  const Fp8GemmProblem& p = plan.problem;
  const driver::DriverTable& table = stream.device.table();
  const int64_t row = row_columns(p);
  const uint32_t slice = static_cast<uint32_t>(128 / element_size(p.out));
  constexpr DType kE4m3 = DType::float8_e4m3fn;
  constexpr uint32_t kBox = 128;
  auto map = [&](const char* what, const TiledTensor& tensor) {
    return as_argument<kernels::TensorMap>(tensor_map(table, tensor, what));
  };
  kernels::Fp8GemmArguments arguments{};
  kernels::GroupedGemmArguments& product = arguments.product;
  product.a = map("a", {kE4m3, pointers.a, {p.depth, p.rows, 1}, {pointers.a_stride, 0}, {kBox, kBox, 1}, 2});
  product.b = map("b", {kE4m3,
                        pointers.b,
                        {p.depth, p.columns, p.experts},
                        {pointers.b_stride, pointers.b_expert_stride},
                        {kBox, kBox, 1}});
  product.out = map("out", {p.out, pointers.out, {row, 1, p.rows}, {row, row}, {slice, 1, 64}});
  product.expert_offsets = pointers.expert_offsets;
  product.out_data = static_cast<char*>(pointers.out);
  product.experts = static_cast<int32_t>(p.grouped ? p.experts : 0);
  product.rows = static_cast<int32_t>(p.rows);
  product.columns = static_cast<int32_t>(result_columns(p));
  product.row_columns = static_cast<int32_t>(row);
  product.depth = static_cast<int32_t>(p.depth);
  product.panel_tiles = plan.panel_tiles;
  arguments.a_scale = {pointers.a_scale, pointers.a_scale_row_stride, pointers.a_scale_block_stride,
                       pointers.a_scale_block_stride != 0};
  arguments.b_scale = {pointers.b_scale,
                       pointers.b_scale_expert_stride,
                       pointers.b_scale_half_stride,
                       pointers.b_scale_column_block_stride,
                       pointers.b_scale_block_stride,
                       pointers.b_scale_per_channel,
                       pointers.b_scale_block_stride != 0};
  void* parameters[] = {&arguments};
  stream.launch(plan.launches[0], parameters);
}

}  // namespace hunyuan_kernels::host
