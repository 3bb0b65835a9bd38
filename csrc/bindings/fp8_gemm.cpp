// GEMMs with e4m3 operands: schemas, checks, allocation. docs/numerics.md has the table of scales.
#include "cpu/fp8_gemm.h"

#include "bindings/expert_arguments.h"
#include "bindings/fp8_gemm_device.h"
#include "bindings/fp8_scales.h"
#include "bindings/quantize.h"
#include "bindings/torch_glue.h"

namespace hunyuan_kernels {
namespace {

using cpu::kFp8ScaleBlock;

// The scale of the transposed weights: what was along k is along the rows now.
cpu::WeightScale transposed_scale(const cpu::WeightScale& scale, const cpu::ExpertWeights& b) {
  cpu::WeightScale t = scale;
  t.column_block = kFp8ScaleBlock;
  t.column_stride = scale.block_stride;
  t.block_stride = scale.column_stride;
  t.blocks = b.rows > kFp8ScaleBlock && scale.column_stride != 0;
  return t;
}

constexpr DTypes kFp8 = {ScalarType::Float8_e4m3fn};
constexpr DTypes kFloats = {ScalarType::BFloat16, ScalarType::Float};
constexpr DTypes kActivations = {ScalarType::Float8_e4m3fn, ScalarType::BFloat16, ScalarType::Float};

// On a device: activations that no scale goes with.
bool is_weight_only(const char* op, const Tensor& a, const std::optional<Tensor>& a_scale) {
  if (a.scalar_type() != ScalarType::BFloat16 && a.scalar_type() != ScalarType::Float) return false;
  activation_scale(op, a_scale, a);
  return true;
}

// One matrix as a group of its own. `names` are those of a, its shape, b, and the scale of b.
struct DenseNames {
  const char *a, *a_shape, *b, *b_scale;
};

Tensor dense(const char* op, const DenseNames& names, const Tensor& a_given, DTypes a_dtypes, const Tensor& b_given,
             const std::optional<Tensor>& a_scale, const Tensor& b_scale, ScalarType out_dtype, bool transpose) {
  cpu::ExpertWeights b =
      matrix_weights(op, names.b, b_given, kFp8, "[N, K]", transpose ? Packed::refused : Packed::allowed);
  cpu::WeightScale weight =
      weight_scale(op, names.b_scale, b_scale, {names.b, b_given, false, b.experts, b.rows, b.columns}, false);
  if (transpose) {
    weight = transposed_scale(weight, b);
    b = transposed(b);
  }
  const Tensor a = activations(op, names.a, a_given, a_dtypes, b.columns, names.a_shape);
  const cpu::ActivationScale activation = activation_scale(op, a_scale, a);
  Tensor out = empty({a.size(0), b.rows}, checked_out_dtype(op, out_dtype), a);
  cpu::grouped_gemm_fp8(cpu::microkernels(), torch_threads(), rows_of(a), b, {0, a.size(0)}, activation, weight,
                        rows_of(out));
  return out;
}

Tensor fp8_gemm(const Tensor& a, const Tensor& b, const Tensor& a_scale, const Tensor& b_scale, ScalarType out_dtype) {
  constexpr const char* op = "fp8_gemm";
  if (DeviceCall call(op, a); call)
    return device::multiply_fp8(op, call, false, a, "b", b, std::nullopt, a_scale, b_scale,
                                checked_out_dtype(op, out_dtype));
  return dense(op, {"a", "[M, K]", "b", "b_scale"}, a, kFp8, b, a_scale, b_scale, out_dtype, false);
}

Tensor fp8_linear(const Tensor& x, const Tensor& weight, const Tensor& weight_scale) {
  if (DeviceCall call("fp8_linear", x); call)
    return device::multiply_fp8_weights(call, {"fp8_linear", "x", "weight", "weight_scale"}, false, x, weight,
                                        std::nullopt, weight_scale, ScalarType::BFloat16);
  return dense("fp8_linear", {"x", "[M, K]", "weight", "weight_scale"}, x, kFloats, weight, std::nullopt, weight_scale,
               x.scalar_type() == ScalarType::Float ? ScalarType::Float : ScalarType::BFloat16, false);
}

Tensor fp8_linear_dgrad(const Tensor& grad_out, const Tensor& weight, const Tensor& weight_scale) {
  constexpr const char* op = "fp8_linear_dgrad";
  check_dtype(op, "grad_out", grad_out, kFloats);
  check(weight_scale.dim() != 1 || weight_scale.size(0) == 1, op, "weight_scale",
        "is per channel; multiply grad_out by it and pass one scale");
  if (DeviceCall call(op, grad_out); call)
    return device::fp8_weights_gradient(call, {op, "grad_out", "weight", "weight_scale"}, grad_out, weight,
                                        std::nullopt, weight_scale, grad_out.scalar_type());
  return dense(op, {"grad_out", "[M, N]", "weight", "weight_scale"}, grad_out, kFloats, weight, std::nullopt,
               weight_scale, grad_out.scalar_type(), true);
}

// What both grouped ops check.
struct GroupedArguments {
  GroupedArguments(const char* op, const Tensor& a_given, const Tensor& b_given, const char* b_name,
                   const char* b_shape, const Tensor& expert_offsets, const std::optional<Tensor>& a_scale_given,
                   const Tensor& b_scale_given, bool halves)
      : b(expert_weights(op, b_name, b_given, kFp8, b_shape, Packed::allowed)),
        a(activations(op, "a", a_given, kActivations, b.columns, "[S, K]")),
        offsets(checked_expert_offsets(op, expert_offsets, b.experts, a.size(0), "S")),
        a_scale(activation_scale(op, a_scale_given, a)) {
    if (halves) check_halves(op, b_name, b_given, b);
    b_scale = weight_scale(op, "b_scale", b_scale_given, {b_name, b_given, true, b.experts, b.rows, b.columns}, halves);
  }
  cpu::ExpertWeights b;
  Tensor a;
  cpu::ExpertOffsets offsets;
  cpu::ActivationScale a_scale;
  cpu::WeightScale b_scale;
};

Tensor grouped_gemm_fp8(const Tensor& a, const Tensor& b, const Tensor& expert_offsets, std::optional<Tensor> a_scale,
                        const Tensor& b_scale, ScalarType out_dtype) {
  constexpr const char* op = "grouped_gemm_fp8";
  if (DeviceCall call(op, a); call && is_weight_only(op, a, a_scale))
    return device::multiply_fp8_weights(call, {op, "a", "b", "b_scale"}, false, a, b, expert_offsets, b_scale,
                                        checked_out_dtype(op, out_dtype));
  else if (call)
    return device::multiply_fp8(op, call, false, a, "b", b, expert_offsets, a_scale, b_scale,
                                checked_out_dtype(op, out_dtype));
  const GroupedArguments in(op, a, b, "b", "[E, N, K]", expert_offsets, a_scale, b_scale, false);
  Tensor out = empty({in.a.size(0), in.b.rows}, checked_out_dtype(op, out_dtype), in.a);
  cpu::grouped_gemm_fp8(cpu::microkernels(), torch_threads(), rows_of(in.a), in.b, in.offsets, in.a_scale, in.b_scale,
                        rows_of(out));
  return out;
}

// grad_out[r] @ (b_scale b[e]) for the rows of group e.
Tensor grouped_gemm_fp8_dgrad(const Tensor& grad_out_given, const Tensor& b_given, const Tensor& expert_offsets,
                              const Tensor& b_scale, ScalarType out_dtype) {
  constexpr const char* op = "grouped_gemm_fp8_dgrad";
  check_dtype(op, "grad_out", grad_out_given, kFloats);
  check(b_scale.dim() != 2, op, "b_scale", "is per channel; multiply grad_out by it and pass [E]");
  if (DeviceCall call(op, grad_out_given); call)
    return device::fp8_weights_gradient(call, {op, "grad_out", "b", "b_scale"}, grad_out_given, b_given, expert_offsets,
                                        b_scale, checked_out_dtype(op, out_dtype));
  const cpu::ExpertWeights b = expert_weights(op, "b", b_given, kFp8, "[E, N, K]", Packed::refused);
  const Tensor grad_out = activations(op, "grad_out", grad_out_given, kFloats, b.rows, "[S, N]");
  const cpu::ExpertOffsets offsets = checked_expert_offsets(op, expert_offsets, b.experts, grad_out.size(0), "S");
  const cpu::WeightScale scale =
      weight_scale(op, "b_scale", b_scale, {"b", b_given, true, b.experts, b.rows, b.columns}, false);
  Tensor out = empty({grad_out.size(0), b.columns}, checked_out_dtype(op, out_dtype), grad_out);
  cpu::grouped_gemm_fp8(cpu::microkernels(), torch_threads(), rows_of(grad_out), transposed(b), offsets, {},
                        transposed_scale(scale, b), rows_of(out));
  return out;
}

Tensor grouped_swiglu_fp8(const Tensor& a, const Tensor& gate_up, const Tensor& expert_offsets,
                          std::optional<Tensor> a_scale, const Tensor& b_scale, ScalarType out_dtype) {
  constexpr const char* op = "grouped_swiglu_fp8";
  if (DeviceCall call(op, a); call && is_weight_only(op, a, a_scale))
    return device::multiply_fp8_weights(call, {op, "a", "gate_up", "b_scale"}, true, a, gate_up, expert_offsets,
                                        b_scale, checked_out_dtype(op, out_dtype));
  else if (call)
    return device::multiply_fp8(op, call, true, a, "gate_up", gate_up, expert_offsets, a_scale, b_scale,
                                checked_out_dtype(op, out_dtype));
  const GroupedArguments in(op, a, gate_up, "gate_up", "[E, 2I, K]", expert_offsets, a_scale, b_scale, true);
  Tensor out = empty({in.a.size(0), in.b.rows / 2}, checked_out_dtype(op, out_dtype), in.a);
  cpu::grouped_swiglu_fp8(cpu::microkernels(), torch_threads(), rows_of(in.a), in.b, in.offsets, in.a_scale, in.b_scale,
                          rows_of(out));
  return out;
}

// The e4m3 results: those in fp32, quantized under `out_scale`, or without one in blocks of 1 x 128 whose scales are
// put there. On a device by the same kernel where activations are e4m3, else by another one behind it.
Tensor quantized_swiglu(const Tensor& a, const Tensor& gate_up, const Tensor& expert_offsets,
                        const std::optional<Tensor>& a_scale, const Tensor& b_scale, std::optional<Tensor>& out_scale) {
  constexpr const char* op = "grouped_swiglu_fp8";
  if (out_scale) {
    check_scale(op, "out_scale", *out_scale, "a", a);
    check(out_scale->numel() == 1, op, "out_scale", "has shape ", shape_text(*out_scale),
          "; one element is required, or None for fresh scales of 1 x 128 blocks");
  }
  if (DeviceCall call(op, a); call && !is_weight_only(op, a, a_scale))
    return device::multiply_fp8(op, call, true, a, "gate_up", gate_up, expert_offsets, a_scale, b_scale,
                                ScalarType::Float8_e4m3fn, &out_scale);
  return quantize_activations(op, grouped_swiglu_fp8(a, gate_up, expert_offsets, a_scale, b_scale, ScalarType::Float),
                              out_scale);
}

std::tuple<Tensor, Tensor> grouped_swiglu_fp8_quantized(const Tensor& a, const Tensor& gate_up,
                                                        const Tensor& expert_offsets, std::optional<Tensor> a_scale,
                                                        const Tensor& b_scale) {
  std::optional<Tensor> scale;
  Tensor q = quantized_swiglu(a, gate_up, expert_offsets, a_scale, b_scale, scale);
  return {q, *scale};
}

Tensor grouped_swiglu_fp8_static(const Tensor& a, const Tensor& gate_up, const Tensor& expert_offsets,
                                 std::optional<Tensor> a_scale, const Tensor& b_scale, const Tensor& out_scale) {
  std::optional<Tensor> given = out_scale;
  return quantized_swiglu(a, gate_up, expert_offsets, a_scale, b_scale, given);
}

}  // namespace
}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def("fp8_gemm(Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, ScalarType out_dtype) -> Tensor");
  m.def("fp8_linear(Tensor x, Tensor weight, Tensor weight_scale) -> Tensor");
  m.def("fp8_linear_dgrad(Tensor grad_out, Tensor weight, Tensor weight_scale) -> Tensor");
  m.def(
      "grouped_gemm_fp8(Tensor a, Tensor b, Tensor expert_offsets, Tensor? a_scale, Tensor b_scale, ScalarType "
      "out_dtype) -> Tensor");
  m.def(
      "grouped_gemm_fp8_dgrad(Tensor grad_out, Tensor b, Tensor expert_offsets, Tensor b_scale, ScalarType out_dtype) "
      "-> Tensor");
  m.def(
      "grouped_swiglu_fp8(Tensor a, Tensor gate_up, Tensor expert_offsets, Tensor? a_scale, Tensor b_scale, ScalarType "
      "out_dtype) -> Tensor");
  m.def(
      "grouped_swiglu_fp8_quantized(Tensor a, Tensor gate_up, Tensor expert_offsets, Tensor? a_scale, Tensor b_scale) "
      "-> (Tensor q, Tensor scale)");
  m.def(
      "grouped_swiglu_fp8_static(Tensor a, Tensor gate_up, Tensor expert_offsets, Tensor? a_scale, Tensor b_scale, "
      "Tensor out_scale) -> Tensor");
}

#define HK_FP8_GEMM_FOR(backend)                                                                       \
  STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, backend, m) {                                             \
    m.impl("fp8_gemm", TORCH_BOX(&hunyuan_kernels::fp8_gemm));                                         \
    m.impl("fp8_linear", TORCH_BOX(&hunyuan_kernels::fp8_linear));                                     \
    m.impl("fp8_linear_dgrad", TORCH_BOX(&hunyuan_kernels::fp8_linear_dgrad));                         \
    m.impl("grouped_gemm_fp8", TORCH_BOX(&hunyuan_kernels::grouped_gemm_fp8));                         \
    m.impl("grouped_gemm_fp8_dgrad", TORCH_BOX(&hunyuan_kernels::grouped_gemm_fp8_dgrad));             \
    m.impl("grouped_swiglu_fp8", TORCH_BOX(&hunyuan_kernels::grouped_swiglu_fp8));                     \
    m.impl("grouped_swiglu_fp8_quantized", TORCH_BOX(&hunyuan_kernels::grouped_swiglu_fp8_quantized)); \
    m.impl("grouped_swiglu_fp8_static", TORCH_BOX(&hunyuan_kernels::grouped_swiglu_fp8_static));       \
  }
HK_FP8_GEMM_FOR(CPU)
HK_FP8_GEMM_FOR(CUDA)
#undef HK_FP8_GEMM_FOR
