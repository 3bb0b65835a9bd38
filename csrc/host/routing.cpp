#include "host/routing.h"

#include "common/check.h"
#include "common/integer_math.h"

namespace hunyuan_kernels::host {
namespace {

const char* source_name(DType source) {
  switch (source) {
    case DType::float32: return "float32";
    case DType::bfloat16: return "bfloat16";
    case DType::int32: return "int32";
    case DType::int64: return "int64";
    default: return "";
  }
}

bool from_logits(const RoutingProblem& problem) {
  return problem.source == DType::float32 || problem.source == DType::bfloat16;
}

// Experts in one lane: the fewest of the kernel's variants with which 32 lanes hold all.
int slots_for(int64_t experts) { return experts <= 32 * 4 ? 4 : experts <= 32 * 8 ? 8 : 16; }

void check_experts(const char* op, int64_t experts) {
  check(experts <= kernels::kRoutingMaxExperts, op, "experts", "are ", experts, "; allowed on a GPU: at most ",
        kernels::kRoutingMaxExperts, ". Route on the CPU");
}

uint32_t power_of_two_from(int64_t value) {
  uint32_t power = 1;
  while (power < value) power *= 2;
  return power;
}

}  // namespace

bool logits_are_vectors(int64_t experts, DType dtype, int64_t alignment) {
  return experts % 4 == 0 && alignment % (4 * element_size(dtype)) == 0;
}

RoutingPlan plan_routing(const char* op, const RoutingProblem& problem, const driver::DeviceProperties& device) {
  const int64_t experts = problem.experts, top_k = problem.top_k;
  check_experts(op, experts);
  const int64_t shared_bytes = kernels::routing_shared_bytes(top_k, experts);
  constexpr int64_t kStaticBytes = 1024;  // the permutation and sums of warps
  check(shared_bytes + kStaticBytes <= device.shared_bytes, op, "top_k", "is ", top_k, " with ", experts,
        " experts: counting takes ", shared_bytes, " bytes of shared memory, a block has ",
        device.shared_bytes - kStaticBytes, ". Choose fewer, or route on the CPU");

  RoutingPlan plan{problem, maximum(ceil_div(problem.tokens, int64_t{kernels::kRoutingChunk}), 1), 0, 0, {}};
  if (plan.recycles()) plan.statistics_words = 2 * problem.tokens;
  const std::string suffix =
      source_name(problem.source) + (from_logits(problem) ? "_" + std::to_string(slots_for(experts)) : std::string());
  driver::KernelLaunch launch;
  launch.stem = "routing";
  launch.block.x = kernels::kRoutingChunk;
  launch.shared_bytes = static_cast<uint32_t>(shared_bytes);
  // Without clusters every block is one of its own.
  const int64_t largest = driver::has_clusters(device) ? kernels::kRoutingCluster : 1;
  const uint32_t cluster = power_of_two_from(minimum(plan.chunks, largest));
  if (plan.chunks <= largest) {
    launch.kernel = "routing_cluster_" + suffix;
    launch.grid.x = launch.cluster.x = cluster;
    plan.launches.push_back(launch);
    return plan;
  }
  plan.counts_words = plan.chunks * top_k * experts;
  launch.kernel = "routing_choose_" + suffix;
  launch.grid.x = static_cast<uint32_t>(plan.chunks);
  plan.launches.push_back(launch);
  launch.kernel = "routing_assign";
  launch.grid.x = static_cast<uint32_t>(round_up(plan.chunks, int64_t{cluster}));
  launch.cluster.x = cluster;
  plan.launches.push_back(launch);
  return plan;
}

std::string RoutingPlan::text() const {
  std::string text = "routing of " + std::to_string(problem.tokens) + " tokens, " + std::to_string(problem.top_k) +
                     " of " + std::to_string(problem.experts) + " experts, from " + source_name(problem.source) + ": " +
                     std::to_string(chunks) + " chunks";
  if (const int64_t words = counts_words + statistics_words)
    text += ", workspace " + std::to_string(4 * words) + " bytes";
  for (const driver::KernelLaunch& launch : launches) text += "\n  " + launch.text();
  return text;
}

void launch_routing(const RoutingPlan& plan, kernels::RoutingArguments arguments, driver::Stream& stream) {
  const RoutingProblem& problem = plan.problem;
  arguments.tokens = static_cast<int32_t>(problem.tokens);
  arguments.top_k = static_cast<int32_t>(problem.top_k);
  arguments.experts = static_cast<int32_t>(problem.experts);
  arguments.chunks = static_cast<int32_t>(plan.chunks);
  arguments.limit = problem.capacity ? static_cast<uint32_t>(*problem.capacity) : UINT32_MAX;
  arguments.bfloat16_logits = problem.source == DType::bfloat16;
  if (!plan.recycles()) arguments.seed = nullptr, arguments.statistics = nullptr;
  void* parameters[] = {&arguments};
  for (const driver::KernelLaunch& launch : plan.launches) stream.launch(launch, parameters);
}

driver::KernelLaunch plan_route_backward(const char* op, DType dtype, int64_t tokens, int64_t experts) {
  check_experts(op, experts);
  const int slots = slots_for(experts);
  const int64_t lanes = power_of_two_from(ceil_div(experts, int64_t{slots}));
  driver::KernelLaunch launch;
  launch.stem = "routing";
  launch.kernel = std::string("routing_backward_") + source_name(dtype) + "_" + std::to_string(slots);
  launch.block.x = kernels::kRoutingBackwardThreads;
  launch.grid.x = static_cast<uint32_t>(ceil_div(tokens, kernels::kRoutingBackwardThreads / lanes));
  return launch;
}

void launch_route_backward(const char* op, DType dtype, kernels::RouteBackwardArguments arguments,
                           driver::Stream& stream) {
  void* parameters[] = {&arguments};
  stream.launch(plan_route_backward(op, dtype, arguments.tokens, arguments.experts), parameters);
}

LossPlan plan_loss(const char* op, DType dtype, int64_t tokens, int64_t experts, bool backward) {
  check_experts(op, experts);
  const int slots = slots_for(experts);
  const int64_t lanes = power_of_two_from(ceil_div(experts, int64_t{slots}));
  LossPlan plan{tokens, experts, ceil_div(tokens, kernels::kLossPasses * kernels::kLossThreads / lanes), {}};
  driver::KernelLaunch launch;
  launch.stem = "routing";
  launch.block.x = kernels::kLossThreads;
  if (plan.blocks > 0) {
    launch.kernel = std::string(backward ? "routing_loss_backward_" : "routing_loss_") + source_name(dtype) + "_" +
                    std::to_string(slots);
    launch.grid.x = static_cast<uint32_t>(plan.blocks);
    plan.launches.push_back(launch);
  }
  if (!backward) {  // without tokens the loss is 0
    launch.kernel = "routing_loss_sum";
    launch.grid.x = 1;
    plan.launches.push_back(launch);
  }
  return plan;
}

std::string LossPlan::text() const {
  std::string text =
      "load-balancing loss of " + std::to_string(tokens) + " tokens, " + std::to_string(experts) + " experts";
  for (const driver::KernelLaunch& launch : launches) text += "\n  " + launch.text();
  return text;
}

void launch_loss(const LossPlan& plan, kernels::LoadBalancingLossArguments arguments, driver::Stream& stream) {
  arguments.tokens = static_cast<int32_t>(plan.tokens);
  arguments.experts = static_cast<int32_t>(plan.experts);
  arguments.blocks = static_cast<int32_t>(plan.blocks);
  void* parameters[] = {&arguments};
  for (const driver::KernelLaunch& launch : plan.launches) stream.launch(launch, parameters);
}

}  // namespace hunyuan_kernels::host
