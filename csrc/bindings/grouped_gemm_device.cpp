#include "bindings/grouped_gemm_device.h"

#include "bindings/tensor_map_operand.h"

namespace hunyuan_kernels::device {
namespace {

using Form = host::GroupedGemmForm;
namespace stable = torch::stable;

void check_operand(const char* op, const char* name, const Tensor& tensor, int64_t rank, const char* shape,
                   const char* x_name, const Tensor& x) {
  check_same_device(op, name, tensor, x_name, x);
  check_rank(op, name, tensor, rank, shape);
  check(tensor.scalar_type() == ScalarType::BFloat16, op, name, "has dtype ", dtype_name(tensor.scalar_type()),
        "; on a GPU: bfloat16. Convert it with .bfloat16(), or use CPU tensors");
}

// Of this thread: for measurements and tests.
thread_local host::ProductOptions options;

void force_product_options(std::string names) { options = host::ProductOptions::of("force_product_options", names); }

// Gradients of a float32 result arrive in float32; the tensor cores take bf16.
Tensor gradient_operand(const char* op, const Tensor& grad_out) {
  check_dtype(op, "grad_out", grad_out, {ScalarType::BFloat16, ScalarType::Float});
  return stable::to(grad_out, ScalarType::BFloat16);
}

}  // namespace

Tensor multiply_rows(const char* op, DeviceCall& call, Form form, const char* a_name, const Tensor& a_given,
                     const char* b_name, const Tensor& b_given, bool transposed, const Tensor& expert_offsets,
                     ScalarType out_dtype, Tensor* preactivation) {
  const Tensor a_bf16 = transposed ? gradient_operand(op, a_given) : a_given;
  check_operand(op, a_name, a_bf16, 2, "[S, K]", a_name, a_bf16);
  check_operand(op, b_name, b_given, 3, "[E, N, K]", a_name, a_bf16);
  const Tensor b_whole = transposed ? stable::transpose(b_given, 1, 2) : b_given;
  check_shape(op, a_name, a_bf16, {-1, b_whole.size(2)}, transposed ? "[S, N]" : "[S, K]");
  host::GroupedGemmProblem problem{form, b_whole.size(0), a_bf16.size(0), b_whole.size(1), b_whole.size(2)};
  problem.out = to_dtype(out_dtype);
  const Tensor offsets = checked_offsets(op, expert_offsets, problem.experts, a_bf16, a_name);
  const bool swiglu = form != Form::rows;
  const int64_t columns = swiglu ? problem.columns / 2 : problem.columns, row = host::row_columns(problem);

  Tensor out = empty({problem.rows, row}, out_dtype, a_bf16);
  if (preactivation) *preactivation = empty({problem.rows, 2, row}, out_dtype, a_bf16);
  if (problem.experts * problem.depth == 0) {
    stable::zero_(out);
    if (preactivation) stable::zero_(*preactivation);
  } else if (problem.rows * problem.columns > 0) {
    const Tensor a = suitable(a_bf16, 1);
    problem.across = !suits_tensor_map(b_whole, 2) && suits_tensor_map(b_whole, 1);
    const Tensor b = problem.across ? b_whole : suitable(b_whole, 2);
    const host::GroupedGemmPlan plan = host::plan_grouped_gemm(problem, call.properties(), options);
    host::GroupedGemmPointers pointers{};
    pointers.a = call.reads<void>(a_name, a);
    pointers.a_stride = stride_of(a, 0);
    pointers.b = call.reads<void>(b_name, b);
    pointers.b_stride = stride_of(b, problem.across ? 2 : 1);
    pointers.b_expert_stride = stride_of(b, 0);
    pointers.expert_offsets = call.reads<int32_t>("expert_offsets", offsets);
    pointers.out = call.writes<void>("out", out);
    if (preactivation) pointers.preactivation = call.writes<void>("preactivation", *preactivation);
    host::launch_grouped_gemm(plan, pointers, call.stream());
    call.finish();
  }
  if (preactivation)
    *preactivation = stable::reshape(without_padding(*preactivation, columns), {problem.rows, 2 * columns});
  return without_padding(out, columns);
}

void weight_gradient(const char* op, DeviceCall& call, const Tensor& grad_out_given, const Tensor& a_given,
                     const Tensor& expert_offsets, Tensor& grad_b, bool accumulate) {
  const Tensor grad_out_bf16 = gradient_operand(op, grad_out_given);
  check_operand(op, "grad_out", grad_out_bf16, 2, "[S, N]", "grad_b", grad_b);
  check_operand(op, "a", a_given, 2, "[S, K]", "grad_b", grad_b);
  check_shape(op, "grad_out", grad_out_bf16, {-1, grad_b.size(1)}, "[S, N]");
  check_shape(op, "a", a_given, {grad_out_bf16.size(0), grad_b.size(2)}, "[S, K]");
  host::GroupedGemmProblem problem{Form::weight_gradient, grad_b.size(0), a_given.size(0), grad_b.size(1),
                                   grad_b.size(2)};
  problem.out = to_dtype(grad_b.scalar_type());
  const Tensor offsets = checked_offsets(op, expert_offsets, problem.experts, grad_b, "grad_b");
  if (grad_b.numel() == 0) return;
  if (problem.rows == 0) {
    if (!accumulate) stable::zero_(grad_b);
    return;
  }
  Tensor grad_out = suitable(grad_out_bf16, 1), a = suitable(a_given, 1);
  // Gradients that lie transposed, [E, K, N], are the product with the operands exchanged.
  const bool transposed = !suits_tensor_map(grad_b, 2) && suits_tensor_map(grad_b, 1);
  const bool in_place = transposed || suits_tensor_map(grad_b, 2);
  Tensor out = transposed ? stable::transpose(grad_b, 1, 2)
               : in_place ? grad_b
                          : padded({problem.experts, problem.columns, problem.depth}, grad_b.scalar_type(), grad_b);
  if (transposed) {
    std::swap(grad_out, a);
    std::swap(problem.columns, problem.depth);
  }
  if (!in_place && accumulate) stable::copy_(out, grad_b);
  const host::GroupedGemmPlan plan = host::plan_grouped_gemm(problem, call.properties(), options);
  host::GroupedGemmPointers pointers{};
  pointers.a = call.reads<void>("grad_out", grad_out);
  pointers.a_stride = stride_of(grad_out, 0);
  pointers.b = call.reads<void>("a", a);
  pointers.b_stride = stride_of(a, 0);
  pointers.expert_offsets = call.reads<int32_t>("expert_offsets", offsets);
  pointers.out = call.writes<void>("grad_b", out);
  pointers.out_stride = stride_of(out, 1);
  pointers.out_expert_stride = stride_of(out, 0);
  pointers.accumulate = accumulate;
  host::launch_grouped_gemm(plan, pointers, call.stream());
  call.finish();
  if (!in_place) stable::copy_(grad_b, out);
}

}  // namespace hunyuan_kernels::device

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) { m.def("force_product_options(str names) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, CompositeExplicitAutograd, m) {
  m.impl("force_product_options", TORCH_BOX(&hunyuan_kernels::device::force_product_options));
}
