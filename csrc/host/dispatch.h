// dispatch, dispatch_fp8, combine and combine_backward on a device: problem -> plan -> launch.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "driver/device.h"
#include "kernels/dispatch_arguments.h"

namespace hunyuan_kernels::host {

enum class RowMovement { dispatch, dispatch_fp8, combine, combine_backward };

struct RowMovementProblem {
  RowMovement movement;
  DType dtype;              // of what is read
  int64_t rows, hidden;     // of what is written; combine_backward: of grad_y
  int64_t alignment = 256;  // of every row of every operand, in bytes, a power of two
};

struct RowMovementPlan {
  RowMovementProblem problem;
  std::vector<driver::KernelLaunch> launches;  // one, or none when nothing is written

  std::string text() const;
};

// Pure: no device, no memory. Raises when there are more rows than a launch can have.
RowMovementPlan plan_row_movement(const RowMovementProblem& problem);

void launch_dispatch(const RowMovementPlan& plan, const kernels::DispatchArguments& arguments, driver::Stream& stream);
void launch_dispatch_fp8(const RowMovementPlan& plan, kernels::DispatchFp8Arguments arguments, driver::Stream& stream);
void launch_combine(const RowMovementPlan& plan, const kernels::CombineArguments& arguments, driver::Stream& stream);
void launch_combine_backward(const RowMovementPlan& plan, const kernels::CombineBackwardArguments& arguments,
                             driver::Stream& stream);

}  // namespace hunyuan_kernels::host
