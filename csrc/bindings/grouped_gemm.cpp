// Ops of the stem `grouped_gemm`: checks, allocation and the way to the CPU backend or a device.
#include "cpu/grouped_gemm.h"

#include "bindings/expert_arguments.h"
#include "bindings/grouped_gemm_device.h"
#include "bindings/torch_glue.h"

namespace hunyuan_kernels {
namespace {

constexpr std::initializer_list<ScalarType> kElements = {ScalarType::BFloat16, ScalarType::Float};

void check_same_dtype(const char* op, const Tensor& a, const char* name, const Tensor& b) {
  check(a.scalar_type() == b.scalar_type(), op, name, "has dtype ", dtype_name(b.scalar_type()), ", but a has ",
        dtype_name(a.scalar_type()), "; both must be the same: convert one with .to()");
}

Tensor multiply_rows(const char* op, const Tensor& a, const cpu::ExpertWeights& b, const Tensor& expert_offsets,
                     ScalarType out_dtype) {
  const auto offsets = checked_expert_offsets(op, expert_offsets, b.experts, a.size(0), "S");
  Tensor out = empty({a.size(0), b.rows}, out_dtype, a);
  cpu::grouped_gemm(cpu::microkernels(), torch_threads(), rows_of(a), b, offsets, rows_of(out));
  return out;
}

Tensor grouped_gemm(const Tensor& a_, const Tensor& b_, const Tensor& expert_offsets,
                    std::optional<ScalarType> out_dtype) {
  const char* op = "grouped_gemm";
  if (DeviceCall call(op, a_); call)
    return device::multiply_rows(op, call, host::GroupedGemmForm::rows, "a", a_, "b", b_, false, expert_offsets,
                                 checked_out_dtype(op, out_dtype.value_or(a_.scalar_type())), nullptr);
  const auto b = expert_weights(op, "b", b_, kElements, "[E, N, K]", Packed::allowed);
  const Tensor a = activations(op, "a", a_, kElements, b.columns, "[S, K]");
  check_same_dtype(op, a, "b", b_);
  return multiply_rows(op, a, b, expert_offsets, checked_out_dtype(op, out_dtype.value_or(a.scalar_type())));
}

Tensor grouped_gemm_dgrad(const Tensor& grad_out_, const Tensor& b_, const Tensor& expert_offsets,
                          std::optional<ScalarType> out_dtype) {
  const char* op = "grouped_gemm_dgrad";
  if (DeviceCall call(op, grad_out_); call)
    return device::multiply_rows(op, call, host::GroupedGemmForm::rows, "grad_out", grad_out_, "b", b_, true,
                                 expert_offsets, checked_out_dtype(op, out_dtype.value_or(grad_out_.scalar_type())),
                                 nullptr);
  const auto b = expert_weights(op, "b", b_, kElements, "[E, N, K]");
  const Tensor grad_out = activations(op, "grad_out", grad_out_, kElements, b.rows, "[S, N]");
  return multiply_rows(op, grad_out, transposed(b), expert_offsets,
                       checked_out_dtype(op, out_dtype.value_or(grad_out.scalar_type())));
}

void weight_gradient(const char* op, const Tensor& grad_out_, const Tensor& a_, const Tensor& expert_offsets,
                     const cpu::ExpertWeights& grad_b, bool accumulate) {
  const Tensor grad_out = activations(op, "grad_out", grad_out_, kElements, grad_b.rows, "[S, N]");
  const Tensor a = activations(op, "a", a_, kElements, grad_b.columns, "[S, K]");
  check_shape(op, "a", a, {grad_out.size(0), -1}, "[S, K]");
  const auto offsets = checked_expert_offsets(op, expert_offsets, grad_b.experts, a.size(0), "S");
  cpu::grouped_gemm_wgrad(cpu::microkernels(), torch_threads(), rows_of(grad_out), rows_of(a), offsets, grad_b,
                          accumulate);
}

Tensor grouped_gemm_wgrad(const Tensor& grad_out, const Tensor& a, const Tensor& expert_offsets,
                          std::optional<ScalarType> out_dtype) {
  const char* op = "grouped_gemm_wgrad";
  check_rank(op, "grad_out", grad_out, 2, "[S, N]");
  check_rank(op, "a", a, 2, "[S, K]");
  check_rank(op, "expert_offsets", expert_offsets, 1, "[E + 1]");
  check(expert_offsets.size(0) >= 1, op, "expert_offsets", "is empty; E + 1 elements are required");
  check_dtype(op, "a", a, kElements);
  Tensor grad_b = empty({expert_offsets.size(0) - 1, grad_out.size(1), a.size(1)},
                        checked_out_dtype(op, out_dtype.value_or(a.scalar_type())), a);
  if (DeviceCall call(op, a); call) {
    device::weight_gradient(op, call, grad_out, a, expert_offsets, grad_b, false);
    return grad_b;
  }
  weight_gradient(op, grad_out, a, expert_offsets, expert_weights(op, "grad_b", grad_b, kElements, "[E, N, K]"), false);
  return grad_b;
}

void grouped_gemm_wgrad_(Tensor grad_b, const Tensor& grad_out, const Tensor& a, const Tensor& expert_offsets) {
  const char* op = "grouped_gemm_wgrad_";
  check_dtype(op, "grad_b", grad_b, {ScalarType::Float});
  const std::initializer_list<NamedTensor> read = {
      {"grad_out", grad_out}, {"a", a}, {"expert_offsets", expert_offsets}};
  if (DeviceCall call(op, grad_b); call) {
    check_rank(op, "grad_b", grad_b, 3, "[E, N, K]");
    check_written(op, "grad_b", grad_b, read);
    return device::weight_gradient(op, call, grad_out, a, expert_offsets, grad_b, true);
  }
  const auto weights = expert_weights(op, "grad_b", grad_b, kElements, "[E, N, K]");
  check_written(op, "grad_b", grad_b, read);
  weight_gradient(op, grad_out, a, expert_offsets, weights, true);
}

void check_even(const char* op, const Tensor& gate_up) {
  check(gate_up.size(1) % 2 == 0, op, "gate_up", "has shape ", shape_text(gate_up),
        "; dimension 1 must be even: I rows of gate, then I rows of up");
}

// The common part of both forms; preactivation may be null.
Tensor swiglu(const char* op, const Tensor& a_, const Tensor& gate_up_, const Tensor& expert_offsets,
              Tensor* preactivation) {
  if (DeviceCall call(op, a_); call) {
    check_rank(op, "gate_up", gate_up_, 3, "[E, 2I, K]");
    check_even(op, gate_up_);
    const auto form = preactivation ? host::GroupedGemmForm::swiglu_preactivation : host::GroupedGemmForm::swiglu;
    return device::multiply_rows(op, call, form, "a", a_, "gate_up", gate_up_, false, expert_offsets, a_.scalar_type(),
                                 preactivation);
  }
  const auto gate_up = expert_weights(op, "gate_up", gate_up_, kElements, "[E, 2I, K]", Packed::allowed);
  check_halves(op, "gate_up", gate_up_, gate_up);
  const Tensor a = activations(op, "a", a_, kElements, gate_up.columns, "[S, K]");
  check_same_dtype(op, a, "gate_up", gate_up_);
  const auto offsets = checked_expert_offsets(op, expert_offsets, gate_up.experts, a.size(0), "S");
  Tensor out = empty({a.size(0), gate_up.rows / 2}, a.scalar_type(), a);
  cpu::Rows preactivation_rows{};
  if (preactivation) {
    *preactivation = empty({a.size(0), gate_up.rows}, a.scalar_type(), a);
    preactivation_rows = rows_of(*preactivation);
  }
  cpu::grouped_swiglu(cpu::microkernels(), torch_threads(), rows_of(a), gate_up, offsets, rows_of(out),
                      preactivation ? &preactivation_rows : nullptr);
  return out;
}

Tensor grouped_swiglu(const Tensor& a, const Tensor& gate_up, const Tensor& expert_offsets) {
  return swiglu("grouped_swiglu", a, gate_up, expert_offsets, nullptr);
}

std::tuple<Tensor, Tensor> grouped_swiglu_preactivation(const Tensor& a, const Tensor& gate_up,
                                                        const Tensor& expert_offsets) {
  Tensor preactivation;
  Tensor out = swiglu("grouped_swiglu_preactivation", a, gate_up, expert_offsets, &preactivation);
  return {out, preactivation};
}

}  // namespace
}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def("grouped_gemm(Tensor a, Tensor b, Tensor expert_offsets, ScalarType? out_dtype=None) -> Tensor");
  m.def("grouped_gemm_dgrad(Tensor grad_out, Tensor b, Tensor expert_offsets, ScalarType? out_dtype=None) -> Tensor");
  m.def("grouped_gemm_wgrad(Tensor grad_out, Tensor a, Tensor expert_offsets, ScalarType? out_dtype=None) -> Tensor");
  m.def("grouped_gemm_wgrad_(Tensor(a!) grad_b, Tensor grad_out, Tensor a, Tensor expert_offsets) -> ()");
  m.def("grouped_swiglu(Tensor a, Tensor gate_up, Tensor expert_offsets) -> Tensor");
  m.def("grouped_swiglu_preactivation(Tensor a, Tensor gate_up, Tensor expert_offsets) -> (Tensor, Tensor)");
}

#define HK_GROUPED_GEMM_FOR(backend)                                                                   \
  STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, backend, m) {                                             \
    m.impl("grouped_gemm", TORCH_BOX(&hunyuan_kernels::grouped_gemm));                                 \
    m.impl("grouped_gemm_dgrad", TORCH_BOX(&hunyuan_kernels::grouped_gemm_dgrad));                     \
    m.impl("grouped_gemm_wgrad", TORCH_BOX(&hunyuan_kernels::grouped_gemm_wgrad));                     \
    m.impl("grouped_gemm_wgrad_", TORCH_BOX(&hunyuan_kernels::grouped_gemm_wgrad_));                   \
    m.impl("grouped_swiglu", TORCH_BOX(&hunyuan_kernels::grouped_swiglu));                             \
    m.impl("grouped_swiglu_preactivation", TORCH_BOX(&hunyuan_kernels::grouped_swiglu_preactivation)); \
  }
HK_GROUPED_GEMM_FOR(CPU)
HK_GROUPED_GEMM_FOR(CUDA)
#undef HK_GROUPED_GEMM_FOR
