// e4m3 weights under bf16 activations on a device: checks, the order that prepack gives weights there, plan, launch.
#include "host/fp8_gemm_weight_only.h"

#include "bindings/fp8_gemm_device.h"
#include "bindings/fp8_scales.h"
#include "bindings/tensor_map_operand.h"

namespace hunyuan_kernels::device {
namespace {

namespace stable = torch::stable;

constexpr int64_t kLanes = 32, kLaneBytes = 16;  // of a panel of 16 rows and 32 of K

// [N, K] of weights [..., N, K], or packed [..., N / 16, K / 32, 32, 16].
struct Extents {
  int64_t columns, depth;
};
Extents extents_of(const char* op, const char* name, const Tensor& b, const char* shape, int64_t rank, bool packed) {
  if (!packed) {
    check_rank(op, name, b, rank, shape);
    return {b.size(rank - 2), b.size(rank - 1)};
  }
  check(
      b.size(rank) == kLanes && b.size(rank + 1) == kLaneBytes && b.is_contiguous(), op, name, "has shape ",
      shape_text(b), " and strides ", shape_text(std::vector<int64_t>(b.strides().begin(), b.strides().end())),
      "; packed weights on a GPU are contiguous and end with dimensions ", shape_text({kLanes, kLaneBytes}),
      ". Those that end with [16, 4] were packed for the CPU: call hunyuan_kernels.prepack on the weights on the GPU");
  return {b.size(rank - 2) * host::kWeightOnlyPackedColumns, b.size(rank - 1) * host::kWeightOnlyPackedDepth};
}

}  // namespace

Tensor prepack_weights(const char* op, const Tensor& weights) {
  check_dtype(op, "weights", weights, {ScalarType::BFloat16, ScalarType::Float8_e4m3fn});
  check(weights.dim() == 2 || weights.dim() == 3, op, "weights", "has shape ", shape_text(weights),
        "; required: [N, K] or [E, N, K]");
  if (weights.scalar_type() == ScalarType::BFloat16) {  // the kernels read them in the order that they have
    Tensor copy = stable::new_empty(weights, weights.sizes());
    stable::copy_(copy, weights);
    return copy;
  }
  const int64_t d = weights.dim() - 2, rows = weights.size(d), depth = weights.size(d + 1);
  const int64_t columns = host::kWeightOnlyPackedColumns, deep = host::kWeightOnlyPackedDepth;
  check(rows % columns == 0 && depth % deep == 0, op, "weights", "has shape ", shape_text(weights),
        "; on a GPU N must be a multiple of ", columns, " and K of ", deep, ": pass weights of other sizes unpacked");
  const int64_t experts = d ? weights.size(0) : 1;
  // [panel, row / 8, row % 8, K / 32, product, half of its depth, lane % 4, element of a pair]: a lane has row % 8 and
  // lane % 4 of its own, and of each product the four registers of an A fragment, rows 8 apart side by side.
  const Tensor split = stable::reshape(weights, {experts * rows / columns, 2, 8, depth / deep, 2, 2, 4, 2});
  const Tensor lanes = stable::transpose(stable::transpose(split, 1, 3), 3, 6);
  const std::vector<int64_t> shape = d ? std::vector<int64_t>{experts, rows / columns, depth / deep, kLanes, kLaneBytes}
                                       : std::vector<int64_t>{rows / columns, depth / deep, kLanes, kLaneBytes};
  return stable::reshape(stable::contiguous(lanes), shape);
}

Tensor multiply_fp8_weights(DeviceCall& call, const WeightOnlyNames& names, bool swiglu, const Tensor& a_given,
                            const Tensor& b_given, const std::optional<Tensor>& expert_offsets,
                            const Tensor& b_scale_given, ScalarType out_dtype) {
  const char* op = names.op;
  const bool grouped = expert_offsets.has_value();
  const char* a_shape = grouped ? "[S, K]" : "[M, K]";
  const int64_t rank = grouped ? 3 : 2;
  check_rank(op, names.a, a_given, 2, a_shape);
  check(a_given.scalar_type() != ScalarType::Float, op, names.a,
        "has dtype float32; on a GPU: bfloat16. Convert it with .bfloat16(), or use CPU tensors");
  check_dtype(op, names.a, a_given, {ScalarType::BFloat16});
  check_same_device(op, names.b, b_given, names.a, a_given);
  check_dtype(op, names.b, b_given, {ScalarType::Float8_e4m3fn});
  const bool packed = b_given.dim() == rank + 2;
  const Extents b_extents = extents_of(op, names.b, b_given,
                                       !grouped ? "[N, K]"
                                       : swiglu ? "[E, 2I, K]"
                                                : "[E, N, K]",
                                       rank, packed);
  check_shape(op, names.a, a_given, {-1, b_extents.depth}, a_shape);
  host::Fp8WeightOnlyProblem problem{
      swiglu, grouped, grouped ? b_given.size(0) : 1, a_given.size(0), b_extents.columns, b_extents.depth, packed};
  problem.out = to_dtype(out_dtype);
  check(!swiglu || problem.columns % 2 == 0, op, names.b, "has shape ", shape_text(b_given),
        "; dimension 1 must be even: I rows of gate, then I rows of up");
  check(!swiglu || !packed || problem.columns / 2 % host::kWeightOnlyPackedColumns == 0, op, names.b,
        "has packed shape ", shape_text(b_given), ", with I = ", problem.columns / 2,
        " rows of gate; packed weights need a multiple of ", host::kWeightOnlyPackedColumns, ": pass them unpacked");
  const std::optional<Tensor> offsets =
      grouped ? std::optional(checked_offsets(op, *expert_offsets, problem.experts, a_given, names.a)) : std::nullopt;
  const Tensor b_scale = stable::contiguous(b_scale_given);  // the kernels read scales of channels side by side
  const cpu::WeightScale weight = weight_scale(
      op, names.b_scale, b_scale, {names.b, b_given, grouped, problem.experts, problem.columns, problem.depth}, swiglu);

  Tensor out = empty({problem.rows, swiglu ? problem.columns / 2 : problem.columns}, out_dtype, a_given);
  if (problem.experts * problem.depth == 0) {
    stable::zero_(out);
  } else if (problem.rows * problem.columns > 0) {
    const Tensor a = suitable(a_given, 1), b = packed ? b_given : suitable(b_given, rank - 1);
    check(reinterpret_cast<uintptr_t>(b.const_data_ptr()) % 16 == 0, op, names.b,
          "is packed and does not start at a multiple of 16 bytes: pass what hunyuan_kernels.prepack returned, or a "
          "slice of whole experts");
    host::Fp8WeightOnlyPointers pointers{};
    pointers.a = call.reads<void>(names.a, a);
    pointers.a_stride = stride_of(a, 0);
    pointers.b = call.reads<void>(names.b, b);
    if (!packed) {
      pointers.b_stride = stride_of(b, rank - 2);
      pointers.b_expert_stride = grouped ? stride_of(b, 0) : pointers.b_stride * problem.columns;
    }
    if (offsets) pointers.expert_offsets = call.reads<int32_t>("expert_offsets", *offsets);
    pointers.b_scale = kernel_scale(call, names.b_scale, b_scale, weight);
    problem.in_blocks = pointers.b_scale.in_blocks;
    pointers.out = call.writes<void>("out", out);
    host::launch_fp8_weight_only(host::plan_fp8_weight_only(problem, call.properties()), pointers, call.stream());
    call.finish();
  }
  return out;
}

Tensor fp8_weights_gradient(DeviceCall& call, const WeightOnlyNames& names, const Tensor& grad_out,
                            const Tensor& weights, const std::optional<Tensor>& expert_offsets, const Tensor& scale,
                            ScalarType out_dtype) {
  const char* op = names.op;
  const int64_t rank = expert_offsets ? 3 : 2;
  check_same_device(op, names.b, weights, names.a, grad_out);
  check(weights.dim() != rank + 2, op, names.b, "has shape ", shape_text(weights),
        ", that of packed weights; this op needs them as they were before hunyuan_kernels.prepack");
  check_rank(op, names.b, weights, rank, expert_offsets ? "[E, N, K]" : "[N, K]");
  // The transposed weights, copied since the kernels read along the depth, have the transposed blocks.
  const Tensor transposed_scale = scale.dim() == rank ? stable::transpose(scale, rank - 2, rank - 1) : scale;
  return multiply_fp8_weights(call, names, false, stable::to(grad_out, ScalarType::BFloat16),
                              stable::transpose(weights, rank - 2, rank - 1), expert_offsets, transposed_scale,
                              out_dtype);
}

}  // namespace hunyuan_kernels::device
