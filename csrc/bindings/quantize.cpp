// quantize_fp8: schema, checks, allocation.
#include "bindings/quantize.h"

#include "bindings/device_call.h"
#include "bindings/torch_glue.h"
#include "common/integer_math.h"
#include "cpu/quantize.h"
#include "host/quantize.h"

namespace hunyuan_kernels {
namespace {

QuantizeRecipe recipe_from_name(const char* op, const std::string& name) {
  std::string allowed;
  for (int i = 0; i < static_cast<int>(std::size(kQuantizeRecipeNames)); ++i) {
    if (name == kQuantizeRecipeNames[i]) return static_cast<QuantizeRecipe>(i);
    allowed += std::string(i ? ", '" : "'") + kQuantizeRecipeNames[i] + "'";
  }
  check(false, op, "recipe", "is '", name, "'; allowed: ", allowed);
  return {};
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

// Writes q and, unless static_scale is given, scale.
void run(const char* op, QuantizeRecipe recipe, const Tensor& x, const Matrices& m, Tensor& q, const Tensor& scale,
         bool is_static) {
  int64_t scale_strides[3] = {0, 0, 0};  // matrix, row, column
  for (int64_t d = 0; d < scale.dim(); ++d) scale_strides[d + !m.batched] = scale.stride(d);

  DeviceCall call(op, x);
  if (!call) {
    cpu::QuantizeArguments a{};
    a.recipe = recipe;
    a.x = x.const_data_ptr();
    a.dtype = to_dtype(x.scalar_type());
    a.matrices = m.matrices, a.rows = m.rows, a.columns = m.columns;
    a.matrix_stride = m.matrix_stride, a.row_stride = m.row_stride;
    a.q = data<float8_e4m3fn>(q);
    if (is_static)
      a.static_scale = const_data<float>(scale);
    else
      a.scale = data<float>(scale);
    a.scale_matrix_stride = scale_strides[0];
    a.scale_row_stride = scale_strides[1], a.scale_column_stride = scale_strides[2];
    return cpu::quantize_fp8(a, torch_threads());
  }
  host::QuantizeProblem problem{recipe,    to_dtype(x.scalar_type()), m.matrices,   m.rows,
                                m.columns, m.matrix_stride,           m.row_stride, is_static};
  const auto address = reinterpret_cast<uintptr_t>(x.const_data_ptr());
  problem.alignment = static_cast<int64_t>(address & -address);
  const host::QuantizePlan plan = host::plan_quantize(problem, call.properties());
  Tensor workspace = empty({plan.workspace_bytes}, ScalarType::Byte, x);
  host::QuantizePointers pointers{};
  pointers.x = call.reads<void>("x", x);
  pointers.q = call.writes<float8_e4m3fn>("q", q);
  if (is_static)
    pointers.static_scale = call.reads<float>("scale", scale);
  else
    pointers.scale = call.writes<float>("scale", scale);
  pointers.scale_matrix_stride = scale_strides[0];
  pointers.scale_row_stride = scale_strides[1], pointers.scale_column_stride = scale_strides[2];
  pointers.workspace = call.writes<void>("workspace", workspace);
  host::launch_quantize(plan, pointers, call.stream());
  call.finish();
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
  run(op, recipe, x, m, q, scale, false);
  return {q, scale};
}

Tensor quantize_fp8_static(Tensor x_given, std::string recipe_name, Tensor scale) {
  constexpr const char* op = "quantize_fp8";
  const QuantizeRecipe recipe = recipe_from_name(op, recipe_name);
  const Tensor x = checked_input(op, x_given);
  const Matrices m(x);
  check_same_device(op, "scale", scale, "x", x);
  check_dtype(op, "scale", scale, {ScalarType::Float});
  const std::vector<int64_t> required = scale_shape(recipe, m);
  check(std::equal(required.begin(), required.end(), scale.sizes().begin(), scale.sizes().end()), op, "scale",
        "has shape ", shape_text(scale), "; required for recipe '", recipe_name, "' and x ", shape_text(x), ": ",
        shape_text(required));
  Tensor q = torch::stable::new_empty(x, x.sizes(), ScalarType::Float8_e4m3fn);
  run(op, recipe, x, m, q, scale, true);
  return q;
}

}  // namespace

Tensor quantize_activations(const char* op, const Tensor& x, std::optional<Tensor>& scale) {
  const Matrices m(x);
  Tensor q = empty({m.rows, m.columns}, ScalarType::Float8_e4m3fn, x);
  if (scale) {
    run(op, QuantizeRecipe::tensor, x, m, q, torch::stable::reshape(*scale, {}), true);
  } else {
    scale = empty_activation_scale(-1, m.rows, ceil_div(m.columns, kScaleBlock), x);
    run(op, QuantizeRecipe::block_1x128, x, m, q, *scale, false);
  }
  return q;
}

}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def("quantize_fp8(Tensor x, str recipe) -> (Tensor q, Tensor scale)");
  m.def("quantize_fp8_static(Tensor x, str recipe, Tensor scale) -> Tensor");
}

#define HK_QUANTIZE_FOR(backend)                                                     \
  STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, backend, m) {                           \
    m.impl("quantize_fp8", TORCH_BOX(&hunyuan_kernels::quantize_fp8));               \
    m.impl("quantize_fp8_static", TORCH_BOX(&hunyuan_kernels::quantize_fp8_static)); \
  }
HK_QUANTIZE_FOR(CPU)
HK_QUANTIZE_FOR(CUDA)
#undef HK_QUANTIZE_FOR
