// swiglu and its gradient on a device: problem -> plan -> launch.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "driver/device.h"
#include "kernels/swiglu_arguments.h"

namespace hunyuan_kernels::host {

struct SwigluProblem {
  bool backward;
  DType dtype;              // float32 or bfloat16
  int64_t rows, columns;    // of the activation: x has twice as many columns
  int64_t alignment = 256;  // of every row of every operand, in bytes, a power of two
};

struct SwigluPlan {
  SwigluProblem problem;
  std::vector<driver::KernelLaunch> launches;  // one, or none when nothing is written

  std::string text() const;
};

// Pure: no device, no memory. Raises when there are more rows than a launch can have.
SwigluPlan plan_swiglu(const SwigluProblem& problem);

void launch_swiglu(const SwigluPlan& plan, kernels::SwigluArguments arguments, driver::Stream& stream);
void launch_swiglu_backward(const SwigluPlan& plan, kernels::SwigluBackwardArguments arguments, driver::Stream& stream);

}  // namespace hunyuan_kernels::host
