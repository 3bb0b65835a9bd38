// The layer in one call on the CPU, for inference: schemas, checks, allocation. On a device and for gradients
// hunyuan_kernels/ops/moe.py composes it of other ops.
#include "cpu/moe.h"

#include "bindings/dispatch.h"
#include "bindings/expert_arguments.h"
#include "bindings/fp8_scales.h"
#include "bindings/nf4_argument.h"
#include "bindings/routing.h"
#include "cpu/expert_rows.h"

namespace hunyuan_kernels {
namespace {

constexpr DTypes kElements = {ScalarType::BFloat16, ScalarType::Float};
constexpr DTypes kWeights = {ScalarType::BFloat16, ScalarType::Float, ScalarType::Float8_e4m3fn, ScalarType::Byte};

// The names of a group of experts' tensors in messages.
struct ExpertNames {
  const char *gate_up, *gate_up_scale, *down, *down_scale;
};
constexpr ExpertNames kRouted = {"experts.gate_up", "experts.gate_up_scale", "experts.down", "experts.down_scale"};
constexpr ExpertNames kShared = {"shared.gate_up", "shared.gate_up_scale", "shared.down", "shared.down_scale"};

// [E, N, K] in the dtype of x, in e4m3 or (blocks) in NF4, with the scale of the latter two. `held` keeps a copy of the
// scale alive.
cpu::ExpertWeights weights_of(const char* op, const char* name, const Tensor& tensor, const char* scale_name,
                              const std::optional<Tensor>& given_scale, bool halves, const Tensor& x,
                              cpu::WeightScale& scale, Tensor& held) {
  check_dtype(op, name, tensor, kWeights);
  const bool scaled = tensor.scalar_type() == ScalarType::Float8_e4m3fn || tensor.scalar_type() == ScalarType::Byte;
  check(given_scale.has_value() == scaled, op, scale_name, given_scale ? "is given, but " : "is None, but ", name,
        " has dtype ", dtype_name(tensor.scalar_type()), "; required for float8_e4m3fn and NF4, and for nothing else");
  cpu::ExpertWeights weights{};
  if (tensor.scalar_type() == ScalarType::Byte) {
    const Nf4Argument argument(op, name, tensor, scale_name, *given_scale, true);
    weights = argument.b, held = argument.scale;
    scale = cpu::nf4_scale(const_data<float>(held), weights, halves);
  } else {
    weights = expert_weights(op, name, tensor, kWeights, halves ? "[E, 2I, H]" : "[E, H, I]", Packed::allowed);
    check(scaled || tensor.scalar_type() == x.scalar_type(), op, name, "has dtype ", dtype_name(tensor.scalar_type()),
          ", but x has ", dtype_name(x.scalar_type()), "; both must be the same: convert one with .to()");
    if (scaled)
      scale = weight_scale(op, scale_name, *given_scale,
                           {name, tensor, true, weights.experts, weights.rows, weights.columns}, halves);
  }
  if (halves) check_halves(op, name, tensor, weights);
  return weights;
}

// SwiGLU experts, checked against x [T, H], and their rows in one call.
class ExpertArguments {
 public:
  ExpertArguments(const char* op, const ExpertNames& names, const Tensor& x, const Tensor& gate_up,
                  const std::optional<Tensor>& gate_up_scale, const Tensor& down,
                  const std::optional<Tensor>& down_scale) {
    e_.gate_up =
        weights_of(op, names.gate_up, gate_up, names.gate_up_scale, gate_up_scale, true, x, e_.gate_up_scale, held_[0]);
    e_.down = weights_of(op, names.down, down, names.down_scale, down_scale, false, x, e_.down_scale, held_[1]);
    check(gate_up_scale.has_value() == down_scale.has_value(), op, names.down, "has dtype ",
          dtype_name(down.scalar_type()), ", but ", names.gate_up, " has ", dtype_name(gate_up.scalar_type()),
          "; both have scales, or neither");
    e_.scaled = gate_up_scale.has_value();
    const int64_t hidden = x.size(1);
    check(e_.gate_up.columns == hidden, op, names.gate_up, "stands for [", e_.gate_up.experts, ", ", e_.gate_up.rows,
          ", ", e_.gate_up.columns, "]; required: [E, 2I, H] with H = ", hidden, ", the columns of x");
    check(e_.down.experts == e_.gate_up.experts && e_.down.rows == hidden && e_.down.columns == e_.gate_up.rows / 2, op,
          names.down, "stands for [", e_.down.experts, ", ", e_.down.rows, ", ", e_.down.columns,
          "]; required: [E, H, I] = [", e_.gate_up.experts, ", ", hidden, ", ", e_.gate_up.rows / 2, "]");
  }

  int64_t experts() const { return e_.gate_up.experts; }

  // y [rows, H], of which those past the last offset are not written.
  Tensor rows(const Tensor& x, const int32_t* token_ids, const cpu::ExpertOffsets& offsets, int64_t rows) const {
    Tensor y = empty({rows, x.size(1)}, x.scalar_type(), x);
    const Tensor hidden =
        empty({cpu::hidden_rows(offsets, e_, to_dtype(x.scalar_type())), e_.intermediate()}, x.scalar_type(), x);
    cpu::Rows in = rows_of(x);
    in.ids = token_ids;
    cpu::expert_mlp(cpu::microkernels(), torch_threads(), in, offsets, e_, rows_of(hidden), rows_of(y));
    return y;
  }

 private:
  cpu::SwigluExperts e_;
  Tensor held_[2];
};

Tensor expert_mlp(const Tensor& x_, const Tensor& token_ids_, const Tensor& expert_offsets, const Tensor& gate_up,
                  std::optional<Tensor> gate_up_scale, const Tensor& down, std::optional<Tensor> down_scale) {
  constexpr const char* op = "expert_mlp";
  const Tensor x = activations(op, "x", x_, kElements, -1, "[T, H]");
  const ExpertArguments experts(op, kRouted, x, gate_up, gate_up_scale, down, down_scale);
  const Tensor token_ids = checked_token_ids(op, token_ids_, "x", x);
  const auto offsets = checked_rows(op, x, token_ids, expert_offsets, experts.experts());
  Tensor y = experts.rows(x, const_data<int32_t>(token_ids), offsets, token_ids.size(0));
  cpu::zero_rows(torch_threads(), rows_of(y), offsets.back());
  return y;
}

using LayerTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

LayerTuple moe(const Tensor& x_, const Tensor& logits, int64_t top_k, std::optional<int64_t> capacity, bool recycle,
               bool renormalize, const Tensor& seed, std::optional<Tensor> num_tokens, const Tensor& gate_up,
               std::optional<Tensor> gate_up_scale, const Tensor& down, std::optional<Tensor> down_scale,
               std::optional<Tensor> shared_gate_up, std::optional<Tensor> shared_gate_up_scale,
               std::optional<Tensor> shared_down, std::optional<Tensor> shared_down_scale,
               std::optional<Tensor> residual) {
  constexpr const char* op = "moe";
  const Tensor x = activations(op, "x", x_, kElements, -1, "[T, H]");
  const int64_t tokens = x.size(0);
  check_rank(op, "logits", logits, 2, "[T, E]");
  const ExpertArguments experts(op, kRouted, x, gate_up, gate_up_scale, down, down_scale);
  check(logits.size(0) == tokens && logits.size(1) == experts.experts(), op, "logits", "has shape ", shape_text(logits),
        "; required: [T, E] = [", tokens, ", ", experts.experts(), "], one for each of the experts' weights");
  check(shared_gate_up.has_value() == shared_down.has_value(), op, kShared.down,
        shared_down ? "is given, but " : "is None, but ", kShared.gate_up, shared_gate_up ? " is given" : " is None",
        "; both or neither");
  std::optional<ExpertArguments> shared;
  if (shared_gate_up) {
    shared.emplace(op, kShared, x, *shared_gate_up, shared_gate_up_scale, *shared_down, shared_down_scale);
    check(shared->experts() == 1, op, kShared.gate_up, "has ", shared->experts(), " experts; allowed: one");
  }
  if (residual) {
    check_same_device(op, "residual", *residual, "x", x);
    check_dtype(op, "residual", *residual, {x.scalar_type()});
    check_shape(op, "residual", *residual, {tokens, x.size(1)}, "[T, H]");
  }
  const auto [weights, expert_ids, rows, token_ids, expert_offsets, demand, num_recycled, num_dropped] =
      route(logits, top_k, capacity, recycle, renormalize, seed, num_tokens);
  const auto offsets = checked_expert_offsets(op, expert_offsets, experts.experts(), token_ids.size(0), "S");
  const Tensor y = experts.rows(x, const_data<int32_t>(token_ids), offsets, token_ids.size(0));
  std::optional<Tensor> shared_out;
  if (shared) shared_out = shared->rows(x, nullptr, {0, tokens}, tokens);
  return {combine(y, rows, weights, token_ids, shared_out, residual),
          weights,
          expert_ids,
          rows,
          token_ids,
          expert_offsets,
          demand,
          num_recycled,
          num_dropped};
}

}  // namespace
}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def(
      "expert_mlp(Tensor x, Tensor token_ids, Tensor expert_offsets, Tensor gate_up, Tensor? gate_up_scale, Tensor "
      "down, Tensor? down_scale) -> Tensor");
  m.def(
      "moe(Tensor x, Tensor logits, int top_k, int? capacity, bool recycle, bool renormalize, Tensor seed, Tensor? "
      "num_tokens, Tensor gate_up, Tensor? gate_up_scale, Tensor down, Tensor? down_scale, Tensor? shared_gate_up, "
      "Tensor? shared_gate_up_scale, Tensor? shared_down, Tensor? shared_down_scale, Tensor? residual) -> (Tensor y, "
      "Tensor weights, Tensor expert_ids, Tensor rows, Tensor token_ids, Tensor expert_offsets, Tensor demand, Tensor "
      "num_recycled, Tensor num_dropped)");
}

STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, CPU, m) {
  m.impl("expert_mlp", TORCH_BOX(&hunyuan_kernels::expert_mlp));
  m.impl("moe", TORCH_BOX(&hunyuan_kernels::moe));
}
