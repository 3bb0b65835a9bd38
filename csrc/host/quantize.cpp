#include "host/quantize.h"

#include "common/check.h"
#include "common/integer_math.h"
#include "kernels/quantize_arguments.h"

namespace hunyuan_kernels::host {
namespace {

// Tensor recipe: blocks of 256 threads that an SM holds at 64 registers. More blocks than that would only lengthen the
// list of partial maxima that every block of the second launch reads.
constexpr int64_t kTensorBlocksPerSm = 4;
constexpr uint32_t kThreadsPerBlock = 256;  // several small regions share a block of this size
constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1, kMaxGridY = 65535;

driver::Extent grid_of(int64_t blocks, int64_t matrices) {
  check(blocks <= kMaxGridX, "quantize_fp8", "x", "needs ", blocks, " blocks for a matrix; a launch can have ",
        kMaxGridX, ". Quantize it in parts");
  check(matrices <= kMaxGridY, "quantize_fp8", "x", "has ", matrices, " matrices; a launch can take ", kMaxGridY,
        ". Quantize them in parts");
  return {static_cast<uint32_t>(blocks), static_cast<uint32_t>(matrices), 1};
}

// Threads for a row: 32 to 512, so that each takes about 4 vectors (enough loads in flight, few registers).
uint32_t row_threads(int64_t vectors) {
  uint32_t threads = 32;
  while (threads < kernels::kQuantizeRowMaxThreads && 4 * threads < vectors) threads *= 2;
  return threads;
}

void plan_regions(QuantizePlan& plan, int64_t region_rows, int64_t region_columns, uint32_t threads,
                  const std::string& suffix) {
  const int64_t column_regions = region_columns ? ceil_div(plan.columns, region_columns) : 1;
  plan.row_regions = ceil_div(plan.rows, region_rows);
  if (plan.problem.matrices * plan.row_regions * column_regions == 0) return;
  plan.column_regions = static_cast<uint32_t>(column_regions);
  const uint32_t per_block = static_cast<uint32_t>(minimum(maximum(kThreadsPerBlock / threads, 1), plan.row_regions));
  driver::KernelLaunch launch;
  launch.stem = "quantize";
  launch.kernel = std::string("quantize_") + name_of(plan.problem.recipe) + suffix;
  launch.grid = grid_of(ceil_div(plan.row_regions, per_block) * column_regions, plan.problem.matrices);
  launch.block = {threads, per_block, 1};
  plan.launches.push_back(launch);
}

void plan_tensor(QuantizePlan& plan, int64_t per_vector, const driver::DeviceProperties& device,
                 const std::string& suffix) {
  const int64_t piece = kernels::kQuantizeTensorThreads * kernels::kQuantizeVectors * per_vector;
  const int64_t column_regions = maximum(ceil_div(plan.columns, piece), 1);
  plan.row_regions = plan.columns ? plan.rows : 0;
  const int64_t pieces = plan.row_regions * column_regions, matrices = plan.problem.matrices;
  if (matrices == 0 || (pieces == 0 && plan.problem.is_static)) return;
  plan.column_regions = static_cast<uint32_t>(column_regions);
  grid_of(pieces, matrices);  // the kernel counts pieces in 32 bits
  const int64_t resident = maximum(device.sms * kTensorBlocksPerSm / matrices, 1);
  driver::KernelLaunch launch;
  launch.stem = "quantize";
  launch.grid = grid_of(maximum(minimum(pieces, resident), 1), matrices);
  launch.block.x = kernels::kQuantizeTensorThreads;
  if (!plan.problem.is_static) {
    plan.workspace_bytes = int64_t{launch.grid.x} * matrices * static_cast<int64_t>(sizeof(uint32_t));
    launch.kernel = "quantize_tensor_amax" + suffix;
    plan.launches.push_back(launch);
  }
  launch.kernel = "quantize_tensor" + suffix;
  plan.launches.push_back(launch);
}

}  // namespace

QuantizePlan plan_quantize(const QuantizeProblem& problem, const driver::DeviceProperties& device) {
  QuantizePlan plan{problem, problem.rows, problem.columns, problem.row_stride, 0, 1, 0, {}};
  const bool tensor = problem.recipe == QuantizeRecipe::tensor;
  if (tensor && (plan.row_stride == plan.columns || plan.rows <= 1)) {
    plan.columns *= plan.rows;
    plan.rows = 1;
    plan.row_stride = plan.columns;
  }
  // The kernels without a suffix read whole vectors only: rows that start at multiples of 16 bytes and end at one.
  const int64_t size = element_size(problem.dtype), per_vector = 16 / size;
  const bool whole = problem.alignment >= 16 && plan.columns % per_vector == 0 &&
                     (plan.rows <= 1 || plan.row_stride % per_vector == 0) &&
                     (problem.matrices <= 1 || problem.matrix_stride % per_vector == 0);
  const std::string suffix =
      std::string(problem.dtype == DType::bfloat16 ? "_bfloat16" : "_float32") + (whole ? "" : "_any");
  const uint32_t block_vectors = static_cast<uint32_t>(kScaleBlock / per_vector);
  switch (problem.recipe) {
    case QuantizeRecipe::tensor: plan_tensor(plan, per_vector, device, suffix); break;
    case QuantizeRecipe::row: plan_regions(plan, 1, 0, row_threads(ceil_div(plan.columns, per_vector)), suffix); break;
    case QuantizeRecipe::block_1x128: plan_regions(plan, 1, kScaleBlock, block_vectors, suffix); break;
    case QuantizeRecipe::block_128x128:
      plan_regions(plan, kScaleBlock, kScaleBlock, kScaleBlock * block_vectors / kernels::kQuantizeVectors, suffix);
      break;
  }
  return plan;
}

std::string QuantizePlan::text() const {
  std::string text = "quantize_fp8 " + std::string(name_of(problem.recipe)) + " [" + std::to_string(problem.matrices) +
                     ", " + std::to_string(problem.rows) + ", " + std::to_string(problem.columns) +
                     "]: " + std::to_string(row_regions) + " x " + std::to_string(column_regions) +
                     " regions per matrix";
  if (workspace_bytes) text += ", workspace " + std::to_string(workspace_bytes) + " bytes";
  for (const driver::KernelLaunch& launch : launches) text += "\n  " + launch.text();
  return text;
}

void launch_quantize(const QuantizePlan& plan, const QuantizePointers& pointers, driver::Stream& stream) {
  kernels::QuantizeArguments arguments{};
  arguments.x = pointers.x;
  arguments.q = pointers.q;
  arguments.scale = pointers.scale;
  arguments.static_scale = pointers.static_scale;
  arguments.partial_amax = static_cast<uint32_t*>(pointers.workspace);
  arguments.rows = plan.rows;
  arguments.columns = plan.columns;
  arguments.matrix_stride = plan.problem.matrix_stride;
  arguments.row_stride = plan.row_stride;
  arguments.scale_matrix_stride = pointers.scale_matrix_stride;
  arguments.scale_row_stride = pointers.scale_row_stride;
  arguments.scale_column_stride = pointers.scale_column_stride;
  arguments.row_regions = plan.row_regions;
  arguments.column_regions = plan.column_regions;
  void* parameters[] = {&arguments};
  for (const driver::KernelLaunch& launch : plan.launches) stream.launch(launch, parameters);
}

}  // namespace hunyuan_kernels::host
