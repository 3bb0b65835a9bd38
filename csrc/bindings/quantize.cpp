// quantize_fp8: schema, checks, allocation.
#include "cpu/quantize.h"

#include "bindings/torch_glue.h"
#include "common/integer_math.h"

namespace hunyuan_kernels {
namespace {

using cpu::kScaleBlock;
using cpu::QuantizeRecipe;

QuantizeRecipe recipe_from_name(const char* op, const std::string& name) {
  if (name == "tensor") return QuantizeRecipe::tensor;
  if (name == "row") return QuantizeRecipe::row;
  if (name == "block_1x128") return QuantizeRecipe::block_1x128;
  check(name == "block_128x128", op, "recipe", "is '", name,
        "'; allowed: 'tensor', 'row', 'block_1x128', 'block_128x128'");
  return QuantizeRecipe::block_128x128;
}

// x as matrices [matrices, rows, columns].
struct Matrices {
  explicit Matrices(const Tensor& x)
      : batched(x.dim() == 3),
        matrices(batched ? x.size(0) : 1),
        rows(x.size(batched)),
        columns(x.size(batched + 1)),
        matrix_stride(batched ? x.stride(0) : 0),
        row_stride(x.stride(batched)) {}
  bool batched;
  int64_t matrices, rows, columns, matrix_stride, row_stride;
};

Tensor checked_input(const char* op, const Tensor& x) {
  check_cpu(op, "x", x);
  check_dtype(op, "x", x, {ScalarType::Float, ScalarType::BFloat16});
  check(x.dim() == 2 || x.dim() == 3, op, "x", "has shape ", shape_text(x),
        "; required: [M, K], or [E, M, K] for a matrix of each expert");
  return with_contiguous_rows(x);
}

std::vector<int64_t> scale_shape(QuantizeRecipe recipe, const Matrices& m) {
  std::vector<int64_t> shape;
  if (m.batched) shape.push_back(m.matrices);
  if (recipe == QuantizeRecipe::row || recipe == QuantizeRecipe::block_1x128) shape.push_back(m.rows);
  if (recipe == QuantizeRecipe::block_128x128) shape.push_back(ceil_div(m.rows, kScaleBlock));
  if (recipe == QuantizeRecipe::block_1x128 || recipe == QuantizeRecipe::block_128x128)
    shape.push_back(ceil_div(m.columns, kScaleBlock));
  return shape;
}

cpu::QuantizeArguments arguments_of(QuantizeRecipe recipe, const Tensor& x, const Matrices& m, Tensor& q,
                                    const Tensor& scale) {
  cpu::QuantizeArguments a{};
  a.recipe = recipe;
  a.x = x.const_data_ptr();
  a.dtype = to_dtype(x.scalar_type());
  a.matrices = m.matrices, a.rows = m.rows, a.columns = m.columns;
  a.matrix_stride = m.matrix_stride, a.row_stride = m.row_stride;
  a.q = data<float8_e4m3fn>(q);
  int64_t d = 0;
  if (m.batched) a.scale_matrix_stride = scale.stride(d++);
  if (d < scale.dim()) a.scale_row_stride = scale.stride(d++);
  if (d < scale.dim()) a.scale_column_stride = scale.stride(d++);
  return a;
}

std::tuple<Tensor, Tensor> quantize_fp8(Tensor x_given, std::string recipe_name) {
  constexpr const char* op = "quantize_fp8";
  const QuantizeRecipe recipe = recipe_from_name(op, recipe_name);
  const Tensor x = checked_input(op, x_given);
  const Matrices m(x);
  Tensor q = torch::stable::new_empty(x, x.sizes(), ScalarType::Float8_e4m3fn);
  Tensor scale = recipe == QuantizeRecipe::block_1x128
                     ? empty_activation_scale(m.batched ? m.matrices : -1, m.rows, ceil_div(m.columns, kScaleBlock), x)
                     : torch::stable::new_empty(x, scale_shape(recipe, m), ScalarType::Float);
  cpu::QuantizeArguments a = arguments_of(recipe, x, m, q, scale);
  a.scale = data<float>(scale);
  cpu::quantize_fp8(a, torch_threads());
  return {q, scale};
}

Tensor quantize_fp8_static(Tensor x_given, std::string recipe_name, Tensor scale) {
  constexpr const char* op = "quantize_fp8";
  const QuantizeRecipe recipe = recipe_from_name(op, recipe_name);
  const Tensor x = checked_input(op, x_given);
  const Matrices m(x);
  check_cpu(op, "scale", scale);
  check_dtype(op, "scale", scale, {ScalarType::Float});
  const std::vector<int64_t> required = scale_shape(recipe, m);
  check(std::equal(required.begin(), required.end(), scale.sizes().begin(), scale.sizes().end()), op, "scale",
        "has shape ", shape_text(scale), "; required for recipe '", recipe_name, "' and x ", shape_text(x), ": ",
        shape_text(required));
  Tensor q = torch::stable::new_empty(x, x.sizes(), ScalarType::Float8_e4m3fn);
  cpu::QuantizeArguments a = arguments_of(recipe, x, m, q, scale);
  a.static_scale = const_data<float>(scale);
  cpu::quantize_fp8(a, torch_threads());
  return q;
}

}  // namespace
}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def("quantize_fp8(Tensor x, str recipe) -> (Tensor q, Tensor scale)");
  m.def("quantize_fp8_static(Tensor x, str recipe, Tensor scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, CPU, m) {
  m.impl("quantize_fp8", TORCH_BOX(&hunyuan_kernels::quantize_fp8));
  m.impl("quantize_fp8_static", TORCH_BOX(&hunyuan_kernels::quantize_fp8_static));
}
