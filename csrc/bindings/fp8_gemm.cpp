// GEMMs with e4m3 operands: schemas, checks, allocation. docs/numerics.md has the table of scales.
#include "cpu/fp8_gemm.h"

#include "bindings/expert_arguments.h"
#include "bindings/torch_glue.h"
#include "common/integer_math.h"
#include "cpu/quantize.h"

namespace hunyuan_kernels {
namespace {

using cpu::kFp8ScaleBlock;

Tensor checked_scale(const char* op, const char* argument, const Tensor& scale) {
  check_cpu(op, argument, scale);
  check_dtype(op, argument, scale, {ScalarType::Float});
  return scale;
}

// Null for a scale without elements (K = 0), which scales nothing.
const float* scale_data(const Tensor& scale) { return scale.numel() ? const_data<float>(scale) : nullptr; }

bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  return std::equal(sizes.begin(), sizes.end(), tensor.sizes().begin(), tensor.sizes().end());
}

// Per tensor [] or [1], per row [rows], or blocks [rows, ceil(K / 128)]; absent for bf16 and fp32 activations.
cpu::ActivationScale activation_scale(const char* op, const std::optional<Tensor>& given, const Tensor& a) {
  const bool quantized = a.scalar_type() == ScalarType::Float8_e4m3fn;
  check(given.has_value() == quantized, op, "a_scale",
        given ? "is given, but a has dtype " : "is None, but a has dtype ", dtype_name(a.scalar_type()),
        "; required for float8_e4m3fn and for nothing else");
  if (!given) return {};
  const Tensor scale = checked_scale(op, "a_scale", *given);
  const int64_t rows = a.size(0), blocks = ceil_div(a.size(1), kFp8ScaleBlock);
  if (scale.dim() == 0 || has_shape(scale, {1})) return {scale_data(scale), 0, 0};
  if (has_shape(scale, {rows})) return {scale_data(scale), scale.stride(0), 0};
  check(has_shape(scale, {rows, blocks}), op, "a_scale", "has shape ", shape_text(scale), "; allowed for a ",
        shape_text(a), ": [] or [1] (per tensor), ", shape_text({rows}), " (per row), ", shape_text({rows, blocks}),
        " (1 x 128 blocks)");
  // With one block of k the blocks are rows.
  return {scale_data(scale), scale.stride(0), blocks > 1 ? scale.stride(1) : 0};
}

// Scales of weights [E, rows, K], of one matrix without the E. With `halves`, rows = 2I, gate and up.
cpu::WeightScale weight_scale(const char* op, const char* name, const Tensor& given, const cpu::ExpertWeights& b,
                              bool grouped, bool halves) {
  Tensor scale = checked_scale(op, name, given);
  const int64_t experts = b.experts, rows = b.rows, half = halves ? rows / 2 : rows;
  const int64_t row_blocks = ceil_div(half, kFp8ScaleBlock), blocks = ceil_div(b.columns, kFp8ScaleBlock);
  cpu::WeightScale s;
  s.data = scale_data(scale);
  const int64_t first = grouped ? 1 : 0;  // the dimension behind the experts
  if (grouped && scale.dim() >= 1) s.expert_stride = scale.stride(0);
  if (grouped ? has_shape(scale, {experts}) : scale.dim() == 0 || has_shape(scale, {1})) return s;
  if (halves && has_shape(scale, {experts, 2})) {
    s.half_stride = scale.stride(1);
    return s;
  }
  if (grouped ? has_shape(scale, {experts, rows}) : has_shape(scale, {rows})) {
    s.column_stride = scale.stride(first);
    s.half_stride = half * s.column_stride;
    return s;
  }
  s.column_block = kFp8ScaleBlock;
  s.blocks = blocks > 1;
  if (halves && has_shape(scale, {experts, 2, row_blocks, blocks})) {
    s.half_stride = scale.stride(1), s.column_stride = scale.stride(2), s.block_stride = scale.stride(3);
    return s;
  }
  // Blocks of the whole [2I, K] are those of its halves when no block holds rows of both.
  const int64_t all_blocks = ceil_div(rows, kFp8ScaleBlock);
  const bool separate = !halves || half % kFp8ScaleBlock == 0;
  if (separate &&
      (grouped ? has_shape(scale, {experts, all_blocks, blocks}) : has_shape(scale, {all_blocks, blocks}))) {
    s.column_stride = scale.stride(first), s.block_stride = scale.stride(first + 1);
    s.half_stride = row_blocks * s.column_stride;
    return s;
  }
  if (!grouped)
    check(false, op, name, "has shape ", shape_text(scale), "; allowed: [] or [1] (per tensor), ", shape_text({rows}),
          " (per channel), ", shape_text({all_blocks, blocks}), " (128 x 128 blocks)");
  if (!halves)
    check(false, op, name, "has shape ", shape_text(scale), "; allowed: ", shape_text({experts}), " (per tensor), ",
          shape_text({experts, rows}), " (per channel), ", shape_text({experts, all_blocks, blocks}),
          " (128 x 128 blocks)");
  check(false, op, name, "has shape ", shape_text(scale), "; allowed: ", shape_text({experts}), " (per tensor), ",
        shape_text({experts, 2}), " (gate and up apart), ", shape_text({experts, rows}), " (per channel), ",
        shape_text({experts, 2, row_blocks, blocks}), " (128 x 128 blocks of each half)",
        separate ? " or " + shape_text({experts, all_blocks, blocks}) : std::string());
  return s;
}

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

// One matrix as a group of its own. `names` are those of a, its shape, b, and the scale of b.
struct DenseNames {
  const char *a, *a_shape, *b, *b_scale;
};

Tensor dense(const char* op, const DenseNames& names, const Tensor& a_given, DTypes a_dtypes, const Tensor& b_given,
             const std::optional<Tensor>& a_scale, const Tensor& b_scale, ScalarType out_dtype, bool transpose) {
  cpu::ExpertWeights b =
      matrix_weights(op, names.b, b_given, kFp8, "[N, K]", transpose ? Packed::refused : Packed::allowed);
  cpu::WeightScale weight = weight_scale(op, names.b_scale, b_scale, b, false, false);
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
  return dense("fp8_gemm", {"a", "[M, K]", "b", "b_scale"}, a, kFp8, b, a_scale, b_scale, out_dtype, false);
}

Tensor fp8_linear(const Tensor& x, const Tensor& weight, const Tensor& weight_scale) {
  return dense("fp8_linear", {"x", "[M, K]", "weight", "weight_scale"}, x, kFloats, weight, std::nullopt, weight_scale,
               x.scalar_type() == ScalarType::Float ? ScalarType::Float : ScalarType::BFloat16, false);
}

Tensor fp8_linear_dgrad(const Tensor& grad_out, const Tensor& weight, const Tensor& weight_scale) {
  constexpr const char* op = "fp8_linear_dgrad";
  check_dtype(op, "grad_out", grad_out, kFloats);
  check(weight_scale.dim() != 1 || weight_scale.size(0) == 1, op, "weight_scale",
        "is per channel; multiply grad_out by it and pass one scale");
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
    b_scale = weight_scale(op, "b_scale", b_scale_given, b, true, halves);
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
  const GroupedArguments in(op, a, b, "b", "[E, N, K]", expert_offsets, a_scale, b_scale, false);
  Tensor out = empty({in.a.size(0), in.b.rows}, checked_out_dtype(op, out_dtype), in.a);
  cpu::grouped_gemm_fp8(cpu::microkernels(), torch_threads(), rows_of(in.a), in.b, in.offsets, in.a_scale, in.b_scale,
                        rows_of(out));
  return out;
}

Tensor swiglu(const char* op, const GroupedArguments& in, ScalarType out_dtype) {
  Tensor out = empty({in.a.size(0), in.b.rows / 2}, out_dtype, in.a);
  cpu::grouped_swiglu_fp8(cpu::microkernels(), torch_threads(), rows_of(in.a), in.b, in.offsets, in.a_scale, in.b_scale,
                          rows_of(out));
  return out;
}

Tensor grouped_swiglu_fp8(const Tensor& a, const Tensor& gate_up, const Tensor& expert_offsets,
                          std::optional<Tensor> a_scale, const Tensor& b_scale, ScalarType out_dtype) {
  constexpr const char* op = "grouped_swiglu_fp8";
  const GroupedArguments in(op, a, gate_up, "gate_up", "[E, 2I, K]", expert_offsets, a_scale, b_scale, true);
  return swiglu(op, in, checked_out_dtype(op, out_dtype));
}

// The result quantized from its fp32 values: with out_scale, or in blocks of 1 x 128.
std::tuple<Tensor, Tensor> grouped_swiglu_fp8_quantized(const Tensor& a, const Tensor& gate_up,
                                                        const Tensor& expert_offsets, std::optional<Tensor> a_scale,
                                                        const Tensor& b_scale, std::optional<Tensor> out_scale) {
  constexpr const char* op = "grouped_swiglu_fp8";
  const GroupedArguments in(op, a, gate_up, "gate_up", "[E, 2I, K]", expert_offsets, a_scale, b_scale, true);
  if (out_scale) {
    checked_scale(op, "out_scale", *out_scale);
    check(out_scale->numel() == 1, op, "out_scale", "has shape ", shape_text(*out_scale),
          "; one element is required, or None for fresh scales of 1 x 128 blocks");
  }
  const Tensor exact = swiglu(op, in, ScalarType::Float);
  const int64_t rows = exact.size(0), columns = exact.size(1);
  Tensor q = empty({rows, columns}, ScalarType::Float8_e4m3fn, in.a);
  Tensor scale = out_scale ? empty({}, ScalarType::Float, in.a)
                           : empty_activation_scale(-1, rows, ceil_div(columns, kFp8ScaleBlock), in.a);
  cpu::QuantizeArguments arguments{};
  arguments.recipe = out_scale ? QuantizeRecipe::tensor : QuantizeRecipe::block_1x128;
  arguments.x = exact.const_data_ptr();
  arguments.dtype = DType::float32;
  arguments.matrices = 1, arguments.rows = rows, arguments.columns = columns, arguments.row_stride = columns;
  arguments.q = data<float8_e4m3fn>(q);
  arguments.scale = data<float>(scale);
  if (out_scale) {
    *arguments.scale = *scale_data(*out_scale);
    arguments.static_scale = arguments.scale;
  } else {
    arguments.scale_row_stride = 1, arguments.scale_column_stride = scale.stride(1);
  }
  cpu::quantize_fp8(arguments, torch_threads());
  return {q, scale};
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
      "grouped_swiglu_fp8(Tensor a, Tensor gate_up, Tensor expert_offsets, Tensor? a_scale, Tensor b_scale, ScalarType "
      "out_dtype) -> Tensor");
  m.def(
      "grouped_swiglu_fp8_quantized(Tensor a, Tensor gate_up, Tensor expert_offsets, Tensor? a_scale, Tensor b_scale, "
      "Tensor? out_scale) -> (Tensor q, Tensor scale)");
}

STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, CPU, m) {
  m.impl("fp8_gemm", TORCH_BOX(&hunyuan_kernels::fp8_gemm));
  m.impl("fp8_linear", TORCH_BOX(&hunyuan_kernels::fp8_linear));
  m.impl("fp8_linear_dgrad", TORCH_BOX(&hunyuan_kernels::fp8_linear_dgrad));
  m.impl("grouped_gemm_fp8", TORCH_BOX(&hunyuan_kernels::grouped_gemm_fp8));
  m.impl("grouped_swiglu_fp8", TORCH_BOX(&hunyuan_kernels::grouped_swiglu_fp8));
  m.impl("grouped_swiglu_fp8_quantized", TORCH_BOX(&hunyuan_kernels::grouped_swiglu_fp8_quantized));
}
