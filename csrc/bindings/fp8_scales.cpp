#include "bindings/fp8_scales.h"

#include <algorithm>

#include "common/integer_math.h"

namespace hunyuan_kernels {
namespace {

using cpu::kFp8ScaleBlock;

// Null for a scale without elements (K = 0), which scales nothing.
const float* scale_data(const Tensor& scale) { return scale.numel() ? const_data<float>(scale) : nullptr; }

bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  return std::equal(sizes.begin(), sizes.end(), tensor.sizes().begin(), tensor.sizes().end());
}

}  // namespace

void check_scale(const char* op, const char* argument, const Tensor& scale, const char* scaled_name,
                 const Tensor& scaled) {
  check_same_device(op, argument, scale, scaled_name, scaled);
  check_dtype(op, argument, scale, {ScalarType::Float});
}

cpu::ActivationScale activation_scale(const char* op, const std::optional<Tensor>& given, const Tensor& a) {
  const bool quantized = a.scalar_type() == ScalarType::Float8_e4m3fn;
  check(given.has_value() == quantized, op, "a_scale",
        given ? "is given, but a has dtype " : "is None, but a has dtype ", dtype_name(a.scalar_type()),
        "; required for float8_e4m3fn and for nothing else");
  if (!given) return {};
  const Tensor& scale = *given;
  check_scale(op, "a_scale", scale, "a", a);
  const int64_t rows = a.size(0), blocks = ceil_div(a.size(1), kFp8ScaleBlock);
  if (scale.dim() == 0 || has_shape(scale, {1})) return {scale_data(scale), 0, 0};
  if (has_shape(scale, {rows})) return {scale_data(scale), scale.stride(0), 0};
  check(has_shape(scale, {rows, blocks}), op, "a_scale", "has shape ", shape_text(scale), "; allowed for a ",
        shape_text(a), ": [] or [1] (per tensor), ", shape_text({rows}), " (per row), ", shape_text({rows, blocks}),
        " (1 x 128 blocks)");
  // With one block of k the blocks are rows.
  return {scale_data(scale), scale.stride(0), blocks > 1 ? scale.stride(1) : 0};
}

cpu::WeightScale weight_scale(const char* op, const char* name, const Tensor& scale, const ScaledWeights& weights,
                              bool halves) {
  check_scale(op, name, scale, weights.name, weights.tensor);
  const bool grouped = weights.grouped;
  const int64_t experts = weights.experts, rows = weights.rows, columns = weights.columns;
  const int64_t half = halves ? rows / 2 : rows;
  const int64_t row_blocks = ceil_div(half, kFp8ScaleBlock), blocks = ceil_div(columns, kFp8ScaleBlock);
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

}  // namespace hunyuan_kernels
