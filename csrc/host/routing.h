// route, routing_from_ids and route_backward on a device: problem -> plan -> launches.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "driver/device.h"
#include "kernels/routing_arguments.h"

namespace hunyuan_kernels::host {

struct RoutingProblem {
  DType source;  // of the logits (float32, bfloat16), or of another router's ids (int32, int64)
  int64_t tokens, top_k, experts;
  std::optional<int64_t> capacity;
  bool recycle;  // effective with a capacity
};

struct RoutingPlan {
  RoutingProblem problem;
  int64_t chunks = 1;
  int64_t counts_words = 0;      // of the workspace between two launches
  int64_t statistics_words = 0;  // softmax statistics, when recycling
  std::vector<driver::KernelLaunch> launches;

  bool recycles() const { return problem.recycle && problem.capacity.has_value(); }
  std::string text() const;
};

// Pure: no device, no memory. Raises for more experts, or more choices of them, than the kernels hold.
RoutingPlan plan_routing(const char* op, const RoutingProblem& problem, const driver::DeviceProperties& device);

// Whether rows of logits can be read in vectors of four experts: `alignment` of every row, in bytes.
bool logits_are_vectors(int64_t experts, DType dtype, int64_t alignment);

// Fills in what the plan decides.
void launch_routing(const RoutingPlan& plan, kernels::RoutingArguments arguments, driver::Stream& stream);

driver::KernelLaunch plan_route_backward(const char* op, DType dtype, int64_t tokens, int64_t experts);
void launch_route_backward(const char* op, DType dtype, kernels::RouteBackwardArguments arguments,
                           driver::Stream& stream);

// load_balancing_loss and its gradient.
struct LossPlan {
  int64_t tokens, experts;
  int64_t blocks;  // of the first launch: partial sums, of 8 bytes each, in the workspace of the loss
  std::vector<driver::KernelLaunch> launches;

  std::string text() const;
};

LossPlan plan_loss(const char* op, DType dtype, int64_t tokens, int64_t experts, bool backward);
void launch_loss(const LossPlan& plan, kernels::LoadBalancingLossArguments arguments, driver::Stream& stream);

}  // namespace hunyuan_kernels::host
