#include "host/swiglu.h"

#include "host/row_blocks.h"

namespace hunyuan_kernels::host {
namespace {

const char* op_name(const SwigluProblem& problem) { return problem.backward ? "swiglu_backward" : "swiglu"; }

template <typename Arguments>
void launch(const SwigluPlan& plan, Arguments arguments, driver::Stream& stream) {
  arguments.rows = plan.problem.rows, arguments.columns = plan.problem.columns;
  void* parameters[] = {&arguments};
  for (const driver::KernelLaunch& launch : plan.launches) stream.launch(launch, parameters);
}

}  // namespace

SwigluPlan plan_swiglu(const SwigluProblem& problem) {
  SwigluPlan plan{problem, {}};
  if (problem.rows == 0 || problem.columns == 0) return plan;
  // Up starts behind gate: both are whole vectors when I is.
  const int64_t bytes = problem.columns * element_size(problem.dtype);
  const bool whole = problem.alignment >= 16 && bytes % 16 == 0;
  driver::KernelLaunch launch;
  launch.stem = "swiglu";
  launch.kernel = std::string(problem.backward ? "swiglu_backward" : "swiglu_forward") +
                  (problem.dtype == DType::bfloat16 ? "_bfloat16" : "_float32") + (whole ? "" : "_any");
  // The gradient has half as many vectors of each operand in flight.
  set_row_blocks(launch, op_name(problem), problem.rows, ceil_div(bytes, 16) * (problem.backward ? 2 : 1));
  plan.launches.push_back(launch);
  return plan;
}

std::string SwigluPlan::text() const {
  std::string text = std::string(op_name(problem)) + " [" + std::to_string(problem.rows) + ", " +
                     std::to_string(problem.columns) + "]";
  for (const driver::KernelLaunch& launch : launches) text += "\n  " + launch.text();
  return text;
}

void launch_swiglu(const SwigluPlan& plan, kernels::SwigluArguments arguments, driver::Stream& stream) {
  launch(plan, arguments, stream);
}

void launch_swiglu_backward(const SwigluPlan& plan, kernels::SwigluBackwardArguments arguments,
                            driver::Stream& stream) {
  launch(plan, arguments, stream);
}

}  // namespace hunyuan_kernels::host
