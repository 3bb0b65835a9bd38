// route, routing_from_ids, load_balancing_loss and their gradients: schemas, checks, allocation.
#include "cpu/routing.h"

#include "bindings/routing.h"

#include <algorithm>

#include "bindings/device_call.h"
#include "bindings/torch_glue.h"
#include "common/integer_math.h"
#include "host/routing.h"

namespace hunyuan_kernels {
namespace {

constexpr int64_t kInt32Limit = int64_t{1} << 31;

Tensor checked_logits(const char* op, const Tensor& logits) {
  check_dtype(op, "logits", logits, {ScalarType::Float, ScalarType::BFloat16});
  check_rank(op, "logits", logits, 2, "[T, E]");
  check(logits.size(1) >= 1, op, "logits", "has shape ", shape_text(logits), "; at least one expert is required");
  check(logits.size(1) < kInt32Limit, op, "logits", "has ", logits.size(1), " experts; allowed: fewer than 2^31");
  return with_contiguous_rows(logits);
}

cpu::LogitRows logit_rows(const Tensor& logits) {
  return {logits.const_data_ptr(), to_dtype(logits.scalar_type()), logits.stride(0), logits.size(0), logits.size(1)};
}

void check_num_tokens(const char* op, const std::optional<Tensor>& num_tokens, const char* other, const Tensor& like) {
  if (!num_tokens) return;
  check_same_device(op, "num_tokens", *num_tokens, other, like);
  check_dtype(op, "num_tokens", *num_tokens, {ScalarType::Int});
  check(num_tokens->numel() == 1, op, "num_tokens", "has shape ", shape_text(*num_tokens), "; one element is required");
}

// Tokens that count: num_tokens[0] kept within [0, T], T without it. On the CPU.
int64_t valid_tokens(const std::optional<Tensor>& num_tokens, int64_t tokens) {
  return num_tokens ? minimum(maximum(0, *const_data<int32_t>(*num_tokens)), tokens) : tokens;
}

// The sizes that both ops share, checked.
cpu::RoutingSizes routing_sizes(const char* op, int64_t tokens, int64_t top_k, int64_t experts,
                                std::optional<int64_t> capacity) {
  const int64_t assignments = tokens * top_k;
  check(assignments < kInt32Limit, op, "top_k", "is ", top_k, " with ", tokens, " tokens; allowed: T * k < 2^31");
  cpu::RoutingSizes sizes{tokens, top_k, experts, assignments, tokens, cpu::kNoCapacity};
  if (capacity) {
    check(*capacity >= 0, op, "capacity", "is ", *capacity, "; allowed: 0 or more tokens for each expert, or None");
    check(*capacity < kInt32Limit && *capacity * experts < kInt32Limit, op, "capacity", "is ", *capacity, " for ",
          experts, " experts; allowed: E * C < 2^31. Pass capacity=None to drop nothing");
    sizes.capacity = *capacity;
    sizes.rows = minimum(assignments, *capacity * experts);
  }
  return sizes;
}

// The result, with expert ids and weights that the caller has made.
struct Result {
  Result(const cpu::RoutingSizes& sizes, Tensor ids, Tensor given_weights)
      : expert_ids(ids),
        weights(given_weights),
        rows(empty({sizes.tokens, sizes.top_k}, ScalarType::Int, ids)),
        token_ids(empty({sizes.rows}, ScalarType::Int, ids)),
        expert_offsets(empty({sizes.experts + 1}, ScalarType::Int, ids)),
        demand(empty({sizes.experts}, ScalarType::Int, ids)),
        num_recycled(empty({}, ScalarType::Int, ids)),
        num_dropped(empty({}, ScalarType::Int, ids)) {}

  cpu::RoutingTensors pointers() {
    return {data<int32_t>(expert_ids),   data<float>(weights),          data<int32_t>(rows),
            data<int32_t>(token_ids),    data<int32_t>(expert_offsets), data<int32_t>(demand),
            data<int32_t>(num_recycled), data<int32_t>(num_dropped)};
  }
  RoutingTuple tuple() const {
    return {weights, expert_ids, rows, token_ids, expert_offsets, demand, num_recycled, num_dropped};
  }

  Tensor expert_ids, weights, rows, token_ids, expert_offsets, demand, num_recycled, num_dropped;
};

// On a device: the arguments that both ops share are added to those given.
RoutingTuple route_on_device(const char* op, DeviceCall& call, const host::RoutingProblem& problem,
                             kernels::RoutingArguments a, const std::optional<Tensor>& num_tokens, Result& result) {
  const host::RoutingPlan plan = host::plan_routing(op, problem, call.properties());
  if (num_tokens) a.num_tokens = call.reads<int32_t>("num_tokens", *num_tokens);
  a.expert_ids = call.writes<int32_t>("expert_ids", result.expert_ids);
  a.weights = call.writes<float>("weights", result.weights);
  a.rows = call.writes<int32_t>("rows", result.rows);
  a.token_ids = call.writes<int32_t>("token_ids", result.token_ids);
  a.expert_offsets = call.writes<int32_t>("expert_offsets", result.expert_offsets);
  a.demand = call.writes<int32_t>("demand", result.demand);
  a.num_recycled = call.writes<int32_t>("num_recycled", result.num_recycled);
  a.num_dropped = call.writes<int32_t>("num_dropped", result.num_dropped);
  a.rows_bound = result.token_ids.size(0);
  const Tensor counts = empty({plan.counts_words}, ScalarType::Int, result.expert_ids);
  const Tensor statistics = empty({plan.statistics_words}, ScalarType::Float, result.expert_ids);
  a.counts = call.writes<uint32_t>("counts", counts);
  a.statistics = call.writes<float>("statistics", statistics);
  host::launch_routing(plan, a, call.stream());
  call.finish();
  return result.tuple();
}

// Padding tokens: no expert, no weight.
void clear_padding(const cpu::RoutingSizes& sizes, Tensor& expert_ids, Tensor& weights) {
  int32_t* ids = data<int32_t>(expert_ids);
  float* factors = data<float>(weights);
  for (int64_t i = sizes.valid_tokens * sizes.top_k; i < sizes.assignments(); ++i) ids[i] = -1, factors[i] = 0.0f;
}

}  // namespace

RoutingTuple route(Tensor logits_given, int64_t top_k, std::optional<int64_t> capacity, bool recycle, bool renormalize,
                   Tensor seed, std::optional<Tensor> num_tokens) {
  constexpr const char* op = "route";
  const Tensor logits = checked_logits(op, logits_given);
  const int64_t tokens = logits.size(0), experts = logits.size(1);
  check(top_k >= 1 && top_k <= experts, op, "top_k", "is ", top_k, "; allowed: 1 to the number of experts, ", experts);
  check(!(recycle && capacity && top_k > 1), op, "overflow", "is 'recycle' with top_k = ", top_k,
        " and a capacity; recycling is defined for top_k = 1. Pass overflow='drop', or capacity=None");
  check(!(recycle && capacity && renormalize), op, "renormalize",
        "is True with overflow='recycle' and a capacity: kept tokens would have weight 1, recycled ones a probability. "
        "Pass renormalize=False, overflow='drop' or capacity=None");
  check_same_device(op, "seed", seed, "logits", logits);
  check_dtype(op, "seed", seed, {ScalarType::Long});
  check(seed.numel() == 1, op, "seed", "has shape ", shape_text(seed), "; one element is required");
  check_num_tokens(op, num_tokens, "logits", logits);
  cpu::RoutingSizes sizes = routing_sizes(op, tokens, top_k, experts, capacity);
  Result result(sizes, empty({tokens, top_k}, ScalarType::Int, logits),
                empty({tokens, top_k}, ScalarType::Float, logits));
  const DType dtype = to_dtype(logits.scalar_type());
  if (DeviceCall call(op, logits); call) {
    kernels::RoutingArguments a{};
    a.logits = call.reads<void>("logits", logits);
    a.logits_stride = logits.stride(0);
    a.vectors = host::logits_are_vectors(experts, dtype, row_alignment(logits));
    a.renormalize = renormalize;
    a.seed = call.reads<int64_t>("seed", seed);
    return route_on_device(op, call, {dtype, tokens, top_k, experts, capacity, recycle}, a, num_tokens, result);
  }

  sizes.valid_tokens = valid_tokens(num_tokens, tokens);
  cpu::LogitRows rows = logit_rows(logits);
  rows.tokens = sizes.valid_tokens;
  const bool recycles = recycle && capacity;
  std::vector<float> statistics(recycles ? 2 * sizes.valid_tokens : 0);
  float* maxima = recycles ? statistics.data() : nullptr;
  float* sums = recycles ? maxima + sizes.valid_tokens : nullptr;
  clear_padding(sizes, result.expert_ids, result.weights);
  const cpu::RouterInputs router{rows, renormalize, maxima, sums, static_cast<uint64_t>(*const_data<int64_t>(seed))};
  cpu::assign_rows(sizes, result.pointers(), &router, torch_threads());
  return result.tuple();
}

namespace {

RoutingTuple routing_from_ids(Tensor ids_given, Tensor weights_given, int64_t num_experts,
                              std::optional<int64_t> capacity, std::optional<Tensor> num_tokens) {
  constexpr const char* op = "routing_from_ids";
  check_dtype(op, "expert_ids", ids_given, {ScalarType::Int, ScalarType::Long});
  check_rank(op, "expert_ids", ids_given, 2, "[T, k]");
  const int64_t tokens = ids_given.size(0), top_k = ids_given.size(1);
  check_same_device(op, "weights", weights_given, "expert_ids", ids_given);
  check_dtype(op, "weights", weights_given, {ScalarType::Float});
  check_shape(op, "weights", weights_given, {tokens, top_k}, "[T, k]");
  check(num_experts >= 1 && num_experts < kInt32Limit, op, "num_experts", "is ", num_experts,
        "; allowed: 1 to 2^31 - 1");
  check_num_tokens(op, num_tokens, "expert_ids", ids_given);
  cpu::RoutingSizes sizes = routing_sizes(op, tokens, top_k, num_experts, capacity);

  const Tensor given = as_contiguous(ids_given);
  const Tensor given_weights = as_contiguous(weights_given);
  Result result(sizes, empty({tokens, top_k}, ScalarType::Int, given),
                empty({tokens, top_k}, ScalarType::Float, given));
  if (DeviceCall call(op, given); call) {
    kernels::RoutingArguments a{};
    a.given_ids = call.reads<void>("expert_ids given", given);
    a.given_weights = call.reads<float>("weights given", given_weights);
    const DType dtype = to_dtype(given.scalar_type());
    return route_on_device(op, call, {dtype, tokens, top_k, num_experts, capacity, false}, a, num_tokens, result);
  }

  sizes.valid_tokens = valid_tokens(num_tokens, tokens);
  int32_t* ids = data<int32_t>(result.expert_ids);
  auto take_known = [&](auto* given_id) {
    for (int64_t i = 0; i < sizes.assignments(); ++i)
      ids[i] = given_id[i] >= 0 && given_id[i] < num_experts ? static_cast<int32_t>(given_id[i]) : -1;
  };
  if (given.scalar_type() == ScalarType::Long)
    take_known(const_data<int64_t>(given));
  else
    take_known(const_data<int32_t>(given));
  std::copy_n(const_data<float>(given_weights), sizes.assignments(), data<float>(result.weights));
  clear_padding(sizes, result.expert_ids, result.weights);
  cpu::assign_rows(sizes, result.pointers(), nullptr, torch_threads());
  return result.tuple();
}

Tensor route_backward(Tensor grad_weights_given, Tensor logits_given, Tensor expert_ids, Tensor weights,
                      bool renormalize, std::optional<Tensor> num_tokens) {
  constexpr const char* op = "route_backward";
  const Tensor logits = checked_logits(op, logits_given);
  const int64_t tokens = logits.size(0);
  check_same_device(op, "expert_ids", expert_ids, "logits", logits);
  check_dtype(op, "expert_ids", expert_ids, {ScalarType::Int});
  check_rank(op, "expert_ids", expert_ids, 2, "[T, k]");
  const int64_t top_k = expert_ids.size(1);
  check_shape(op, "expert_ids", expert_ids, {tokens, top_k}, "[T, k]");
  for (auto [name, tensor] :
       {std::pair<const char*, const Tensor*>{"weights", &weights}, {"grad_weights", &grad_weights_given}}) {
    check_same_device(op, name, *tensor, "logits", logits);
    check_dtype(op, name, *tensor, {ScalarType::Float});
    check_shape(op, name, *tensor, {tokens, top_k}, "[T, k]");
  }
  check_num_tokens(op, num_tokens, "logits", logits);
  const Tensor ids = as_contiguous(expert_ids), w = as_contiguous(weights);
  const Tensor grad_weights = as_contiguous(grad_weights_given);
  Tensor grad_logits = empty({tokens, logits.size(1)}, logits.scalar_type(), logits);
  if (DeviceCall call(op, logits); call) {
    if (tokens == 0) return grad_logits;
    const int64_t experts = logits.size(1);
    const DType dtype = to_dtype(logits.scalar_type());
    kernels::RouteBackwardArguments a{};
    a.logits = call.reads<void>("logits", logits);
    if (num_tokens) a.num_tokens = call.reads<int32_t>("num_tokens", *num_tokens);
    a.expert_ids = call.reads<int32_t>("expert_ids", ids);
    a.weights = call.reads<float>("weights", w);
    a.grad_weights = call.reads<float>("grad_weights", grad_weights);
    a.grad_logits = call.writes<void>("grad_logits", grad_logits);
    a.logits_stride = logits.stride(0);
    a.tokens = static_cast<int32_t>(tokens), a.top_k = static_cast<int32_t>(top_k);
    a.experts = static_cast<int32_t>(experts);
    a.renormalize = renormalize;
    a.vectors = host::logits_are_vectors(experts, dtype, minimum(row_alignment(logits), row_alignment(grad_logits)));
    host::launch_route_backward(op, dtype, a, call.stream());
    call.finish();
    return grad_logits;
  }

  const int64_t valid = valid_tokens(num_tokens, tokens);
  const int32_t* numbers = const_data<int32_t>(ids);
  for (int64_t i = 0; i < valid * top_k; ++i) {
    const int32_t id = numbers[i];
    check(id >= 0 && id < logits.size(1), op, "expert_ids", "holds ", id, " at token ", i / top_k,
          "; allowed: 0 to E - 1 = ", logits.size(1) - 1);
  }
  cpu::route_backward({logit_rows(logits), top_k, valid, renormalize, const_data<int32_t>(ids), const_data<float>(w),
                       const_data<float>(grad_weights), grad_logits.mutable_data_ptr()},
                      torch_threads());
  return grad_logits;
}

// What the loss and its gradient share: logits [T, E], demand [E] (contiguous), num_tokens.
struct LossInputs {
  LossInputs(const char* op_, const Tensor& logits_given, const Tensor& demand_given,
             const std::optional<Tensor>& num_tokens_)
      : op(op_), logits(checked_logits(op, logits_given)), num_tokens(num_tokens_) {
    check_num_tokens(op, num_tokens, "logits", logits);
    check_same_device(op, "demand", demand_given, "logits", logits);
    check_dtype(op, "demand", demand_given, {ScalarType::Int});
    check_shape(op, "demand", demand_given, {logits.size(1)}, "[E]");
    check(logits.size(0) < kInt32Limit, op, "logits", "has ", logits.size(0), " tokens; allowed: fewer than 2^31");
    demand = as_contiguous(demand_given);
  }

  host::LossPlan plan(bool backward) const {
    return host::plan_loss(op, to_dtype(logits.scalar_type()), logits.size(0), logits.size(1), backward);
  }
  // `alignment` of all rows, in bytes.
  kernels::LoadBalancingLossArguments device_arguments(DeviceCall& call, int64_t alignment) const {
    kernels::LoadBalancingLossArguments a{};
    a.logits = call.reads<void>("logits", logits), a.logits_stride = logits.stride(0);
    if (num_tokens) a.num_tokens = call.reads<int32_t>("num_tokens", *num_tokens);
    a.demand = call.reads<int32_t>("demand", demand);
    a.vectors = host::logits_are_vectors(logits.size(1), to_dtype(logits.scalar_type()), alignment);
    return a;
  }

  const char* op;
  Tensor logits, demand;
  std::optional<Tensor> num_tokens;
};

Tensor load_balancing_loss(Tensor logits, Tensor demand, std::optional<Tensor> num_tokens) {
  const LossInputs in("load_balancing_loss", logits, demand, num_tokens);
  Tensor loss = empty({}, ScalarType::Float, in.logits);
  if (DeviceCall call(in.op, in.logits); call) {
    const host::LossPlan plan = in.plan(false);
    auto a = in.device_arguments(call, row_alignment(in.logits));
    const Tensor partial_sums = empty({plan.blocks}, ScalarType::Double, in.logits);
    a.partial_sums = call.writes<double>("partial sums", partial_sums);
    a.loss = call.writes<float>("loss", loss);
    host::launch_loss(plan, a, call.stream());
    call.finish();
    return loss;
  }
  *data<float>(loss) = cpu::load_balancing_loss(logit_rows(in.logits), valid_tokens(num_tokens, in.logits.size(0)),
                                                const_data<int32_t>(in.demand), torch_threads());
  return loss;
}

Tensor load_balancing_loss_backward(Tensor grad_loss, Tensor logits, Tensor demand, std::optional<Tensor> num_tokens) {
  const LossInputs in("load_balancing_loss_backward", logits, demand, num_tokens);
  check_same_device(in.op, "grad_loss", grad_loss, "logits", in.logits);
  check_dtype(in.op, "grad_loss", grad_loss, {ScalarType::Float});
  check(grad_loss.numel() == 1, in.op, "grad_loss", "has shape ", shape_text(grad_loss), "; one element is required");
  Tensor grad_logits = empty({in.logits.size(0), in.logits.size(1)}, in.logits.scalar_type(), in.logits);
  if (DeviceCall call(in.op, in.logits); call) {
    auto a = in.device_arguments(call, minimum(row_alignment(in.logits), row_alignment(grad_logits)));
    a.grad_loss = call.reads<float>("grad_loss", grad_loss);
    a.grad_logits = call.writes<void>("grad_logits", grad_logits);
    host::launch_loss(in.plan(true), a, call.stream());
    call.finish();
    return grad_logits;
  }
  cpu::load_balancing_loss_backward(logit_rows(in.logits), valid_tokens(num_tokens, in.logits.size(0)),
                                    const_data<int32_t>(in.demand), *const_data<float>(grad_loss),
                                    grad_logits.mutable_data_ptr(), torch_threads());
  return grad_logits;
}

}  // namespace
}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def(
      "route(Tensor logits, int top_k, int? capacity, bool recycle, bool renormalize, Tensor seed, Tensor? num_tokens) "
      "-> (Tensor weights, Tensor expert_ids, Tensor rows, Tensor token_ids, Tensor expert_offsets, Tensor demand, "
      "Tensor num_recycled, Tensor num_dropped)");
  m.def(
      "routing_from_ids(Tensor expert_ids, Tensor weights, int num_experts, int? capacity, Tensor? num_tokens) -> "
      "(Tensor weights, Tensor expert_ids, Tensor rows, Tensor token_ids, Tensor expert_offsets, Tensor demand, Tensor "
      "num_recycled, Tensor num_dropped)");
  m.def(
      "route_backward(Tensor grad_weights, Tensor logits, Tensor expert_ids, Tensor weights, bool renormalize, Tensor? "
      "num_tokens) -> Tensor");
  m.def("load_balancing_loss(Tensor logits, Tensor demand, Tensor? num_tokens) -> Tensor");
  m.def("load_balancing_loss_backward(Tensor grad_loss, Tensor logits, Tensor demand, Tensor? num_tokens) -> Tensor");
}

#define HK_ROUTING_FOR(backend)                                                                        \
  STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, backend, m) {                                             \
    m.impl("route", TORCH_BOX(&hunyuan_kernels::route));                                               \
    m.impl("routing_from_ids", TORCH_BOX(&hunyuan_kernels::routing_from_ids));                         \
    m.impl("route_backward", TORCH_BOX(&hunyuan_kernels::route_backward));                             \
    m.impl("load_balancing_loss", TORCH_BOX(&hunyuan_kernels::load_balancing_loss));                   \
    m.impl("load_balancing_loss_backward", TORCH_BOX(&hunyuan_kernels::load_balancing_loss_backward)); \
  }
HK_ROUTING_FOR(CPU)
HK_ROUTING_FOR(CUDA)
#undef HK_ROUTING_FOR
