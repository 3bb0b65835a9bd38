// NF4 weights: schemas, checks, allocation.
#include "cpu/nf4_gemm.h"

#include "bindings/expert_arguments.h"
#include "bindings/nf4_argument.h"
#include "bindings/torch_glue.h"
#include "common/nf4.h"

namespace hunyuan_kernels {
namespace {

constexpr DTypes kElements = {ScalarType::BFloat16, ScalarType::Float};
constexpr DTypes kBytes = {ScalarType::Byte};
constexpr DTypes kScale = {ScalarType::Float};

std::tuple<Tensor, Tensor> quantize_nf4(const Tensor& given) {
  constexpr const char* op = "quantize_nf4";
  check_cpu(op, "weights", given);
  check_dtype(op, "weights", given, kElements);
  check(given.dim() == 2 || given.dim() == 3, op, "weights", "has shape ", shape_text(given),
        "; required: [N, K] or [E, N, K]");
  const int64_t d = given.dim() - 2, rows = given.size(d), depth = given.size(d + 1), experts = d ? given.size(0) : 1;
  check(rows % kNf4Rows == 0 && depth % kNf4Depth == 0, op, "weights", "has shape ", shape_text(given),
        "; N must be a multiple of ", kNf4Rows, " and K of ", kNf4Depth);
  const Tensor weights = with_contiguous_rows(given);
  const int64_t panels = rows / kNf4Rows, blocks_along_k = depth / kNf4Depth;
  Tensor scale = d ? empty({experts, rows}, ScalarType::Float, given) : empty({rows}, ScalarType::Float, given);
  Tensor blocks = d ? empty({experts, panels, blocks_along_k, kNf4Block}, ScalarType::Byte, given)
                    : empty({panels, blocks_along_k, kNf4Block}, ScalarType::Byte, given);
  const cpu::ExpertWeights b = {weights.mutable_data_ptr(),
                                to_dtype(weights.scalar_type()),
                                experts,
                                rows,
                                depth,
                                d ? weights.stride(0) : 0,
                                weights.stride(d),
                                1};
  check(cpu::quantize_nf4(cpu::microkernels(), torch_threads(), b, data<uint8_t>(blocks), data<float>(scale)), op,
        "weights", "has elements that are NaN or infinite; NF4 has no codes for them");
  return {scale, blocks};
}

}  // namespace

Nf4Argument::Nf4Argument(const char* op, const char* blocks_name, const Tensor& blocks, const char* scale_name,
                         const Tensor& scale_given, bool grouped) {
  check_cpu(op, blocks_name, blocks);
  check_dtype(op, blocks_name, blocks, kBytes);
  const int64_t d = grouped ? 1 : 0;
  check(blocks.dim() == d + 3 && blocks.size(d + 2) == kNf4Block && blocks.is_contiguous(), op, blocks_name,
        "has shape ", shape_text(blocks), "; required, contiguous, from hunyuan_kernels.quantize_nf4: ",
        grouped ? "[E, N / 16, K / 64, " : "[N / 16, K / 64, ", kNf4Block, "]");
  b = cpu::nf4_weights(blocks.mutable_data_ptr(), grouped ? blocks.size(0) : 1, blocks.size(d) * kNf4Rows,
                       blocks.size(d + 1) * kNf4Depth);
  check_cpu(op, scale_name, scale_given);
  check_dtype(op, scale_name, scale_given, kScale);
  if (grouped)
    check_shape(op, scale_name, scale_given, {b.experts, b.rows}, "[E, N]");
  else
    check_shape(op, scale_name, scale_given, {b.rows}, "[N]");
  scale = as_contiguous(scale_given);
}

namespace {

Tensor nf4_linear(const Tensor& x_, const Tensor& blocks, const Tensor& scale) {
  constexpr const char* op = "nf4_linear";
  const Nf4Argument w(op, "blocks", blocks, "scale", scale, false);
  const Tensor x = activations(op, "x", x_, kElements, w.b.columns, "[M, K]");
  Tensor out = empty({x.size(0), w.b.rows}, x.scalar_type(), x);
  cpu::grouped_gemm_nf4(cpu::microkernels(), torch_threads(), rows_of(x), w.b, {0, x.size(0)},
                        const_data<float>(w.scale), rows_of(out));
  return out;
}

Tensor grouped_gemm_nf4(const Tensor& a_, const Tensor& blocks, const Tensor& scale, const Tensor& expert_offsets,
                        std::optional<ScalarType> out_dtype) {
  constexpr const char* op = "grouped_gemm_nf4";
  const Nf4Argument w(op, "blocks", blocks, "scale", scale, true);
  const Tensor a = activations(op, "a", a_, kElements, w.b.columns, "[S, K]");
  const auto offsets = checked_expert_offsets(op, expert_offsets, w.b.experts, a.size(0), "S");
  Tensor out = empty({a.size(0), w.b.rows}, checked_out_dtype(op, out_dtype.value_or(a.scalar_type())), a);
  cpu::grouped_gemm_nf4(cpu::microkernels(), torch_threads(), rows_of(a), w.b, offsets, const_data<float>(w.scale),
                        rows_of(out));
  return out;
}

Tensor grouped_swiglu_nf4(const Tensor& a_, const Tensor& blocks, const Tensor& scale, const Tensor& expert_offsets) {
  constexpr const char* op = "grouped_swiglu_nf4";
  const Nf4Argument w(op, "blocks", blocks, "scale", scale, true);
  check_halves(op, "blocks", blocks, w.b);
  const Tensor a = activations(op, "a", a_, kElements, w.b.columns, "[S, K]");
  const auto offsets = checked_expert_offsets(op, expert_offsets, w.b.experts, a.size(0), "S");
  Tensor out = empty({a.size(0), w.b.rows / 2}, a.scalar_type(), a);
  cpu::grouped_swiglu_nf4(cpu::microkernels(), torch_threads(), rows_of(a), w.b, offsets, const_data<float>(w.scale),
                          rows_of(out));
  return out;
}

}  // namespace
}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def("quantize_nf4(Tensor weights) -> (Tensor scale, Tensor blocks)");
  m.def("nf4_linear(Tensor x, Tensor blocks, Tensor scale) -> Tensor");
  m.def(
      "grouped_gemm_nf4(Tensor a, Tensor blocks, Tensor scale, Tensor expert_offsets, ScalarType? out_dtype=None) -> "
      "Tensor");
  m.def("grouped_swiglu_nf4(Tensor a, Tensor blocks, Tensor scale, Tensor expert_offsets) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, CPU, m) {
  m.impl("quantize_nf4", TORCH_BOX(&hunyuan_kernels::quantize_nf4));
  m.impl("nf4_linear", TORCH_BOX(&hunyuan_kernels::nf4_linear));
  m.impl("grouped_gemm_nf4", TORCH_BOX(&hunyuan_kernels::grouped_gemm_nf4));
  m.impl("grouped_swiglu_nf4", TORCH_BOX(&hunyuan_kernels::grouped_swiglu_nf4));
}
