#include "bindings/fp8_gemm_device.h"

#include "bindings/fp8_scales.h"
#include "bindings/tensor_map_operand.h"
#include "common/integer_math.h"

namespace hunyuan_kernels::device {
namespace stable = torch::stable;

kernels::Fp8WeightScale kernel_scale(DeviceCall& call, const char* name, const Tensor& scale,
                                     const cpu::WeightScale& strides) {
  const bool one_by_one = strides.column_block == 1;
  return {call.reads<float>(name, scale),
          strides.expert_stride,
          strides.half_stride,
          one_by_one ? 0 : strides.column_stride,
          strides.blocks ? strides.block_stride : 0,
          one_by_one && strides.column_stride != 0,
          strides.blocks && strides.block_stride != 0};
}

Tensor multiply_fp8(const char* op, DeviceCall& call, bool swiglu, const Tensor& a_given, const char* b_name,
                    const Tensor& b_given, const std::optional<Tensor>& expert_offsets,
                    const std::optional<Tensor>& a_scale, const Tensor& b_scale_given, ScalarType out_dtype,
                    std::optional<Tensor>* out_scale) {
  const bool grouped = expert_offsets.has_value();
  const char* a_shape = grouped ? "[S, K]" : "[M, K]";
  const char* b_shape = !grouped ? "[N, K]" : swiglu ? "[E, 2I, K]" : "[E, N, K]";
  check_rank(op, "a", a_given, 2, a_shape);
  check_dtype(op, "a", a_given, {ScalarType::Float8_e4m3fn});
  check_same_device(op, b_name, b_given, "a", a_given);
  check(
      b_given.dim() != grouped + 4, op, b_name, "has shape ", shape_text(b_given),
      ", that of packed weights; on a GPU those go with bfloat16 activations, and e4m3 ones take weights as they were");
  check_rank(op, b_name, b_given, grouped ? 3 : 2, b_shape);
  check_dtype(op, b_name, b_given, {ScalarType::Float8_e4m3fn});
  check_shape(op, "a", a_given, {-1, b_given.size(grouped + 1)}, a_shape);
  check(!swiglu || b_given.size(1) % 2 == 0, op, b_name, "has shape ", shape_text(b_given),
        "; dimension 1 must be even: I rows of gate, then I rows of up");
  host::Fp8GemmProblem problem{swiglu,
                               grouped,
                               grouped ? b_given.size(0) : 1,
                               a_given.size(0),
                               b_given.size(grouped),
                               b_given.size(grouped + 1)};
  problem.out = to_dtype(out_dtype);
  const std::optional<Tensor> offsets =
      grouped ? std::optional(checked_offsets(op, *expert_offsets, problem.experts, a_given, "a")) : std::nullopt;
  const Tensor b_scale = stable::contiguous(b_scale_given);  // the kernels read scales of channels side by side
  const cpu::ActivationScale activation = activation_scale(op, a_scale, a_given);
  const cpu::WeightScale weight = weight_scale(
      op, "b_scale", b_scale, {b_name, b_given, grouped, problem.experts, problem.columns, problem.depth}, swiglu);

  const int64_t columns = swiglu ? problem.columns / 2 : problem.columns;
  Tensor out = empty({problem.rows, host::row_columns(problem)}, out_dtype, a_given);
  const bool fresh = out_scale && !*out_scale;
  if (fresh) *out_scale = empty_activation_scale(-1, problem.rows, ceil_div(columns, cpu::kFp8ScaleBlock), a_given);
  if (problem.experts * problem.depth == 0) {
    stable::zero_(out);
    if (fresh) stable::fill_(**out_scale, 1.0);
  } else if (problem.rows * problem.columns > 0) {
    const Tensor a = suitable(a_given, 1), b = suitable(b_given, grouped + 1);
    host::Fp8GemmPointers pointers{};
    pointers.a = call.reads<void>("a", a);
    pointers.a_stride = stride_of(a, 0);
    pointers.b = call.reads<void>(b_name, b);
    pointers.b_stride = stride_of(b, grouped);
    pointers.b_expert_stride = grouped ? stride_of(b, 0) : pointers.b_stride * problem.columns;
    if (offsets) pointers.expert_offsets = call.reads<int32_t>("expert_offsets", *offsets);
    pointers.a_scale = {call.reads<float>("a_scale", *a_scale), activation.row_stride, activation.block_stride,
                        activation.block_stride != 0};
    pointers.b_scale = kernel_scale(call, "b_scale", b_scale, weight);
    problem.in_blocks = pointers.a_scale.in_blocks || pointers.b_scale.in_blocks;
    pointers.out = call.writes<void>("out", out);
    if (fresh)
      pointers.out_scale = {nullptr, call.writes<float>("scale", **out_scale), (*out_scale)->stride(1)};
    else if (out_scale)
      pointers.out_scale = {call.reads<float>("out_scale", **out_scale), nullptr, 0};
    host::launch_fp8_gemm(host::plan_fp8_gemm(problem, call.properties()), pointers, call.stream());
    call.finish();
  }
  return without_padding(out, columns);
}

}  // namespace hunyuan_kernels::device
