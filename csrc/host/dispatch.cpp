#include "host/dispatch.h"

#include "common/check.h"
#include "common/integer_math.h"
#include "host/row_blocks.h"

namespace hunyuan_kernels::host {
namespace {

const char* op_name(RowMovement movement) {
  switch (movement) {
    case RowMovement::dispatch: return "dispatch";
    case RowMovement::dispatch_fp8: return "dispatch_fp8";
    case RowMovement::combine: return "combine";
    case RowMovement::combine_backward: return "combine_backward";
  }
  return "";
}

std::string kernel_name(const RowMovementProblem& problem, bool whole) {
  const std::string suffix = whole ? "" : "_any";
  if (problem.movement == RowMovement::dispatch) return "dispatch_rows" + suffix;
  const char* dtype = problem.dtype == DType::bfloat16 ? "_bfloat16" : "_float32";
  const char* prefix = problem.movement == RowMovement::dispatch_fp8 ? "" : "dispatch_";  // kernels begin with the stem
  return prefix + std::string(op_name(problem.movement)) + dtype + suffix;
}

// Column ranges that the blocks of dispatch_fp8 divide a row into.
int64_t fp8_spans(int64_t hidden) {
  return ceil_div(hidden, int64_t{kernels::kDispatchScaleBlock * kernels::kRowVectors});
}

template <typename Arguments>
void launch(const RowMovementPlan& plan, Arguments arguments, driver::Stream& stream) {
  void* parameters[] = {&arguments};
  for (const driver::KernelLaunch& launch : plan.launches) stream.launch(launch, parameters);
}

}  // namespace

RowMovementPlan plan_row_movement(const RowMovementProblem& problem) {
  RowMovementPlan plan{problem, {}};
  if (problem.rows == 0 || problem.hidden == 0) return plan;
  const int64_t row_bytes = problem.hidden * element_size(problem.dtype);
  const bool whole = problem.alignment >= 16 && row_bytes % 16 == 0;
  driver::KernelLaunch launch;
  launch.stem = "dispatch";
  launch.kernel = kernel_name(problem, whole);
  if (problem.movement == RowMovement::dispatch_fp8) {
    const int64_t threads = kernels::kDispatchScaleBlock * element_size(problem.dtype) / 16;
    const int64_t per_block = kernels::kRowBlockThreads / threads;
    const int64_t blocks = ceil_div(problem.rows, per_block) * fp8_spans(problem.hidden);
    check(blocks < (int64_t{1} << 31), "dispatch_fp8", "rows", "are ", problem.rows, ": ", blocks,
          " blocks; at most 2^31 - 1 can be launched");
    launch.grid.x = static_cast<uint32_t>(blocks);
    launch.block = {static_cast<uint32_t>(threads), static_cast<uint32_t>(per_block), 1};
  } else {
    const int64_t unit = !whole && problem.movement == RowMovement::dispatch ? 1 : 16;
    set_row_blocks(launch, op_name(problem.movement), problem.rows, ceil_div(row_bytes, unit));
  }
  plan.launches.push_back(launch);
  return plan;
}

std::string RowMovementPlan::text() const {
  std::string text = std::string(op_name(problem.movement)) + " [" + std::to_string(problem.rows) + ", " +
                     std::to_string(problem.hidden) + "]";
  for (const driver::KernelLaunch& launch : launches) text += "\n  " + launch.text();
  return text;
}

void launch_dispatch(const RowMovementPlan& plan, const kernels::DispatchArguments& arguments, driver::Stream& stream) {
  launch(plan, arguments, stream);
}

void launch_dispatch_fp8(const RowMovementPlan& plan, kernels::DispatchFp8Arguments arguments, driver::Stream& stream) {
  arguments.spans = static_cast<uint32_t>(fp8_spans(plan.problem.hidden));
  launch(plan, arguments, stream);
}

void launch_combine(const RowMovementPlan& plan, const kernels::CombineArguments& arguments, driver::Stream& stream) {
  launch(plan, arguments, stream);
}

void launch_combine_backward(const RowMovementPlan& plan, const kernels::CombineBackwardArguments& arguments,
                             driver::Stream& stream) {
  launch(plan, arguments, stream);
}

}  // namespace hunyuan_kernels::host
