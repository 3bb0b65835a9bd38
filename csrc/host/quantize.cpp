#include "host/quantize.h"

#include "common/check.h"
#include "common/integer_math.h"
#include "kernels/quantize_arguments.h"

namespace hunyuan_kernels::host {
namespace {

constexpr int64_t kBlock = 128;  // edge of the block recipes
// Tensor recipe: blocks of 256 threads that an SM holds at 64 registers. More blocks than that would only lengthen the
// list of partial maxima that every block of the second launch reads.
constexpr int64_t kTensorBlocksPerSm = 4;

const char* recipe_name(QuantizeRecipe recipe) {
  switch (recipe) {
    case QuantizeRecipe::tensor: return "tensor";
    case QuantizeRecipe::row: return "row";
    case QuantizeRecipe::block_1x128: return "block_1x128";
    case QuantizeRecipe::block_128x128: return "block_128x128";
  }
  return "";
}

uint32_t grid_size(int64_t blocks) {
  check(blocks < (int64_t{1} << 31), "quantize_fp8", "x", "needs ", blocks,
        " blocks; at most 2^31 - 1 can be launched");
  return static_cast<uint32_t>(blocks);
}

// Threads for a row: 32 to 512, so that each takes about 4 vectors (enough loads in flight, few registers).
uint32_t row_threads(int64_t vectors) {
  uint32_t threads = 32;
  while (threads < kernels::kQuantizeRowMaxThreads && 4 * threads < vectors) threads *= 2;
  return threads;
}

void plan_regions(QuantizePlan& plan, int64_t region_rows, int64_t region_columns, uint32_t threads,
                  const std::string& suffix) {
  plan.regions_per_row = region_columns ? ceil_div(plan.columns, region_columns) : 1;
  plan.regions = ceil_div(plan.rows, region_rows) * plan.regions_per_row;
  if (plan.regions == 0) return;
  const uint32_t per_block = static_cast<uint32_t>(minimum(maximum(256 / threads, 1), plan.regions));
  driver::KernelLaunch launch;
  launch.stem = "quantize";
  launch.kernel = std::string("quantize_") + recipe_name(plan.problem.recipe) + suffix;
  launch.grid.x = grid_size(ceil_div(plan.regions, per_block));
  launch.block = {threads, per_block, 1};
  plan.launches.push_back(launch);
}

void plan_tensor(QuantizePlan& plan, int64_t per_vector, const driver::DeviceProperties& device,
                 const std::string& suffix) {
  const int64_t piece = kernels::kQuantizeTensorThreads * kernels::kQuantizeVectors * per_vector;
  plan.regions_per_row = maximum(ceil_div(plan.columns, piece), 1);
  plan.regions = plan.columns ? plan.rows * plan.regions_per_row : 0;
  if (plan.regions == 0 && plan.problem.is_static) return;
  const int64_t blocks = maximum(minimum(plan.regions, device.sms * kTensorBlocksPerSm), 1);
  driver::KernelLaunch launch;
  launch.stem = "quantize";
  launch.grid.x = grid_size(blocks);
  launch.block.x = kernels::kQuantizeTensorThreads;
  if (!plan.problem.is_static) {
    plan.workspace_bytes = blocks * static_cast<int64_t>(sizeof(uint32_t));
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
                     (plan.rows <= 1 || plan.row_stride % per_vector == 0);
  const std::string suffix =
      std::string(problem.dtype == DType::bfloat16 ? "_bfloat16" : "_float32") + (whole ? "" : "_any");
  const uint32_t block_vectors = static_cast<uint32_t>(kBlock / per_vector);
  switch (problem.recipe) {
    case QuantizeRecipe::tensor: plan_tensor(plan, per_vector, device, suffix); break;
    case QuantizeRecipe::row: plan_regions(plan, 1, 0, row_threads(ceil_div(plan.columns, per_vector)), suffix); break;
    case QuantizeRecipe::block_1x128: plan_regions(plan, 1, kBlock, block_vectors, suffix); break;
    case QuantizeRecipe::block_128x128:
      plan_regions(plan, kBlock, kBlock, kBlock * block_vectors / kernels::kQuantizeVectors, suffix);
      break;
  }
  return plan;
}

std::string QuantizePlan::text() const {
  std::string text = "quantize_fp8 " + std::string(recipe_name(problem.recipe)) + " [" + std::to_string(problem.rows) +
                     ", " + std::to_string(problem.columns) + "]: " + std::to_string(regions) + " regions";
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
  arguments.row_stride = plan.row_stride;
  arguments.regions = plan.regions;
  arguments.regions_per_row = plan.regions_per_row;
  arguments.num_partials = static_cast<int32_t>(plan.workspace_bytes / static_cast<int64_t>(sizeof(uint32_t)));
  void* parameters[] = {&arguments};
  for (const driver::KernelLaunch& launch : plan.launches) stream.launch(launch, parameters);
}

}  // namespace hunyuan_kernels::host
