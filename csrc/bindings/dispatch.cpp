// dispatch, dispatch_fp8, combine and their gradients: schemas, checks, allocation.
#include "cpu/dispatch.h"

#include "bindings/dispatch.h"

#include "bindings/device_call.h"
#include "bindings/torch_glue.h"
#include "common/integer_math.h"
#include "host/dispatch.h"

namespace hunyuan_kernels {
namespace {

constexpr int64_t kLargestRow = int64_t{1} << 31;  // row and token numbers are int32

void check_offsets_shape(const char* op, const Tensor& expert_offsets) {
  check_dtype(op, "expert_offsets", expert_offsets, {ScalarType::Int});
  check_rank(op, "expert_offsets", expert_offsets, 1, "[E + 1]");
  check(expert_offsets.size(0) >= 1, op, "expert_offsets", "is empty; required: [E + 1]");
}

}  // namespace

std::vector<int64_t> checked_rows(const char* op, const Tensor& x, const Tensor& token_ids,
                                  const Tensor& expert_offsets, int64_t experts) {
  auto offsets = checked_expert_offsets(op, expert_offsets, experts, token_ids.size(0), "S");
  const int32_t* ids = const_data<int32_t>(token_ids);
  const int64_t tokens = x.size(0);
  const auto is_token = [&](int32_t id) { return static_cast<uint32_t>(id) < static_cast<uint64_t>(tokens); };
  bool all = true;
  for (int64_t r = 0; r < offsets.back(); ++r) all &= is_token(ids[r]);  // in vectors; names afterwards
  for (int64_t r = 0; !all && r < offsets.back(); ++r)
    check(is_token(ids[r]), op, "token_ids", "holds ", ids[r], " at index ", r, "; allowed: 0 to T - 1 = ", tokens - 1);
  return offsets;
}

Tensor checked_token_ids(const char* op, const Tensor& token_ids, const char* other, const Tensor& like) {
  check_same_device(op, "token_ids", token_ids, other, like);
  check_dtype(op, "token_ids", token_ids, {ScalarType::Int});
  check_rank(op, "token_ids", token_ids, 1, "[S]");
  return as_contiguous(token_ids);
}

namespace {

// On the CPU: the number of rows in use.
int64_t checked_rows_used(const char* op, const Tensor& x, const Tensor& token_ids, const Tensor& expert_offsets) {
  check_offsets_shape(op, expert_offsets);
  return checked_rows(op, x, token_ids, expert_offsets, expert_offsets.size(0) - 1).back();
}

// On a device, where values are not looked at.
Tensor checked_device_offsets(const char* op, const Tensor& expert_offsets, const Tensor& x) {
  check_same_device(op, "expert_offsets", expert_offsets, "x", x);
  check_offsets_shape(op, expert_offsets);
  return as_contiguous(expert_offsets);
}

Tensor checked_matrix(const char* op, const char* argument, const Tensor& tensor,
                      std::initializer_list<ScalarType> dtypes, const char* shape) {
  check_dtype(op, argument, tensor, dtypes);
  check_rank(op, argument, tensor, 2, shape);
  check(tensor.size(0) < kLargestRow, op, argument, "has ", tensor.size(0), " rows; allowed: fewer than 2^31");
  return with_contiguous_rows(tensor);
}

// The caller's buffer for a result [S, H] of x.
Tensor checked_out(const char* op, const Tensor& out, const Tensor& x, const Tensor& token_ids,
                   const Tensor& expert_offsets) {
  check_same_device(op, "out", out, "x", x);
  check_dtype(op, "out", out, {x.scalar_type()});
  check_shape(op, "out", out, {token_ids.size(0), x.size(1)}, "[S, H]");
  check(out.is_contiguous(), op, "out", "has strides ",
        shape_text(std::vector<int64_t>(out.strides().begin(), out.strides().end())), "; it must be contiguous");
  check_written(op, "out", out, {{"x", x}, {"token_ids", token_ids}, {"expert_offsets", expert_offsets}});
  return out;
}

// The result is new, or `given`.
Tensor dispatch_into(const Tensor* given, const Tensor& x_given, const Tensor& token_ids_given,
                     const Tensor& expert_offsets) {
  constexpr const char* op = "dispatch";
  const Tensor x =
      checked_matrix(op, "x", x_given, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Float8_e4m3fn}, "[T, H]");
  const Tensor token_ids = checked_token_ids(op, token_ids_given, "x", x);
  const int64_t bytes = element_size(to_dtype(x.scalar_type()));
  const auto result = [&] {
    return given ? checked_out(op, *given, x_given, token_ids_given, expert_offsets)
                 : empty({token_ids.size(0), x.size(1)}, x.scalar_type(), x);
  };
  if (DeviceCall call(op, x); call) {
    const Tensor offsets = checked_device_offsets(op, expert_offsets, x);
    const Tensor out = result();
    kernels::DispatchArguments a{};
    a.x = call.reads<void>("x", x);
    a.token_ids = call.reads<int32_t>("token_ids", token_ids);
    a.rows_used = call.reads<int32_t>("expert_offsets", offsets) + offsets.size(0) - 1;
    a.out = call.writes<void>("out", out);
    a.rows = token_ids.size(0), a.tokens = x.size(0), a.row_bytes = x.size(1) * bytes;
    a.x_stride = x.stride(0) * bytes;
    const host::RowMovementPlan plan =
        host::plan_row_movement({host::RowMovement::dispatch, to_dtype(x.scalar_type()), a.rows, x.size(1),
                                 minimum(row_alignment(x), row_alignment(out))});
    host::launch_dispatch(plan, a, call.stream());
    call.finish();
    return out;
  }
  cpu::DispatchArguments a{};
  a.rows_used = checked_rows_used(op, x, token_ids, expert_offsets);
  a.x = x.const_data_ptr();
  a.x_stride_bytes = x.stride(0) * bytes;
  a.row_bytes = x.size(1) * bytes;
  a.token_ids = const_data<int32_t>(token_ids);
  a.rows = token_ids.size(0);
  const Tensor out = result();
  a.out = out.mutable_data_ptr();
  cpu::dispatch(a, torch_threads());
  return out;
}

Tensor dispatch(Tensor x, Tensor token_ids, Tensor expert_offsets, Tensor rows) {
  return dispatch_into(nullptr, x, token_ids, expert_offsets);
}

void dispatch_(Tensor out, Tensor x, Tensor token_ids, Tensor expert_offsets) {
  dispatch_into(&out, x, token_ids, expert_offsets);
}

// The e4m3 rows: under `scale`, or without one with fresh ones, which are put there.
Tensor quantized_dispatch(const Tensor& x_given, const Tensor& token_ids_given, const Tensor& expert_offsets,
                          std::optional<Tensor>& scale) {
  constexpr const char* op = "dispatch_fp8";
  const Tensor x = checked_matrix(op, "x", x_given, {ScalarType::Float, ScalarType::BFloat16}, "[T, H]");
  const Tensor token_ids = checked_token_ids(op, token_ids_given, "x", x);
  const DType dtype = to_dtype(x.scalar_type());
  const int64_t rows = token_ids.size(0), hidden = x.size(1);
  Tensor q = empty({rows, hidden}, ScalarType::Float8_e4m3fn, x);
  const bool given = scale.has_value();
  if (given) {
    check_same_device(op, "scale", *scale, "x", x);
    check_dtype(op, "scale", *scale, {ScalarType::Float});
    check(scale->numel() == 1, op, "scale", "has shape ", shape_text(*scale),
          "; one element is required, or None for fresh scales of 1 x 128 blocks");
  } else {
    scale = empty_activation_scale(-1, rows, ceil_div(hidden, 128), x);
  }
  if (DeviceCall call(op, x); call) {
    const Tensor offsets = checked_device_offsets(op, expert_offsets, x);
    kernels::DispatchFp8Arguments a{};
    a.x = call.reads<void>("x", x);
    a.token_ids = call.reads<int32_t>("token_ids", token_ids);
    a.rows_used = call.reads<int32_t>("expert_offsets", offsets) + offsets.size(0) - 1;
    a.q = call.writes<uint8_t>("q", q);
    if (given)
      a.given_scale = call.reads<float>("scale", *scale);
    else
      a.scale = call.writes<float>("scale", *scale), a.scale_block_stride = scale->stride(1);
    a.rows = rows, a.tokens = x.size(0), a.hidden = hidden;
    a.x_stride = x.stride(0);
    const host::RowMovementPlan plan =
        host::plan_row_movement({host::RowMovement::dispatch_fp8, dtype, rows, hidden, row_alignment(x)});
    host::launch_dispatch_fp8(plan, a, call.stream());
    call.finish();
    return q;
  }
  cpu::DispatchFp8Arguments a{};
  a.rows_used = checked_rows_used(op, x, token_ids, expert_offsets);
  a.x = {x.const_data_ptr(), x.stride(0)};
  a.dtype = dtype;
  a.hidden = hidden;
  a.token_ids = const_data<int32_t>(token_ids);
  a.rows = rows;
  a.q = data<float8_e4m3fn>(q);
  if (given)
    a.given_scale = const_data<float>(*scale);
  else
    a.scale = data<float>(*scale), a.scale_block_stride = scale->stride(1);
  cpu::dispatch_fp8(a, torch_threads());
  return q;
}

std::tuple<Tensor, Tensor> dispatch_fp8(Tensor x, Tensor token_ids, Tensor expert_offsets) {
  std::optional<Tensor> scale;
  Tensor q = quantized_dispatch(x, token_ids, expert_offsets, scale);
  return {q, *scale};
}

Tensor dispatch_fp8_static(Tensor x, Tensor token_ids, Tensor expert_offsets, Tensor scale) {
  std::optional<Tensor> given = scale;
  return quantized_dispatch(x, token_ids, expert_offsets, given);
}

// What combine and its gradient share: y [S, H], rows [T, k], weights [T, k], token_ids [S].
struct CombineInputs {
  CombineInputs(const char* op, const Tensor& y_given, const Tensor& rows_given, const Tensor& weights_given,
                const Tensor& token_ids_given)
      : y(checked_matrix(op, "y", y_given, {ScalarType::Float, ScalarType::BFloat16}, "[S, H]")),
        token_ids(checked_token_ids(op, token_ids_given, "y", y)) {
    check_shape(op, "token_ids", token_ids, {y.size(0)}, "[S]");
    check_same_device(op, "rows", rows_given, "y", y);
    check_dtype(op, "rows", rows_given, {ScalarType::Int});
    check_rank(op, "rows", rows_given, 2, "[T, k]");
    tokens = rows_given.size(0), top_k = rows_given.size(1);
    check_same_device(op, "weights", weights_given, "y", y);
    check_dtype(op, "weights", weights_given, {ScalarType::Float});
    check_shape(op, "weights", weights_given, {tokens, top_k}, "[T, k]");
    rows = as_contiguous(rows_given);
    weights = as_contiguous(weights_given);
  }

  // On the CPU: row numbers within y.
  void check_rows(const char* op) const {
    const int32_t* numbers = const_data<int32_t>(rows);
    for (int64_t i = 0; i < tokens * top_k; ++i)
      check(numbers[i] >= -1 && numbers[i] < y.size(0), op, "rows", "holds ", numbers[i], " at token ", i / top_k,
            ", choice ", i % top_k, "; allowed: -1 (none) to S - 1 = ", y.size(0) - 1);
  }

  // A further [T, H] matrix in the dtype of y.
  Tensor like_tokens(const char* op, const char* argument, const Tensor& tensor) const {
    check_same_device(op, argument, tensor, "y", y);
    Tensor checked = checked_matrix(op, argument, tensor, {y.scalar_type()}, "[T, H]");
    check_shape(op, argument, checked, {tokens, y.size(1)}, "[T, H]");
    return checked;
  }

  // Of a device's arguments, what combine and its gradient have in common.
  template <typename Arguments>
  Arguments device_arguments(DeviceCall& call) const {
    Arguments a{};
    a.y = call.reads<void>("y", y);
    a.rows = call.reads<int32_t>("rows", rows);
    a.weights = call.reads<float>("weights", weights);
    a.tokens = tokens, a.rows_of_y = y.size(0), a.hidden = y.size(1);
    a.y_stride = y.stride(0);
    a.top_k = static_cast<int32_t>(top_k);
    return a;
  }

  Tensor y, rows, weights, token_ids;
  int64_t tokens, top_k;
};

cpu::ConstRows const_rows(const Tensor& tensor) { return {tensor.const_data_ptr(), tensor.stride(0)}; }

Tensor combine_on_device(const char* op, DeviceCall& call, const CombineInputs& in, const std::optional<Tensor>& shared,
                         const std::optional<Tensor>& residual) {
  auto a = in.device_arguments<kernels::CombineArguments>(call);
  Tensor out = empty({a.tokens, a.hidden}, in.y.scalar_type(), in.y);
  int64_t alignment = minimum(row_alignment(in.y), row_alignment(out));
  if (shared) {
    a.shared = call.reads<void>("shared", *shared), a.shared_stride = shared->stride(0);
    alignment = minimum(alignment, row_alignment(*shared));
  }
  if (residual) {
    a.residual = call.reads<void>("residual", *residual), a.residual_stride = residual->stride(0);
    alignment = minimum(alignment, row_alignment(*residual));
  }
  a.out = call.writes<void>("out", out);
  const host::RowMovementPlan plan = host::plan_row_movement(
      {host::RowMovement::combine, to_dtype(in.y.scalar_type()), a.tokens, a.hidden, alignment});
  host::launch_combine(plan, a, call.stream());
  call.finish();
  return out;
}

}  // namespace

Tensor combine(Tensor y, Tensor rows, Tensor weights, Tensor token_ids, std::optional<Tensor> shared,
               std::optional<Tensor> residual) {
  constexpr const char* op = "combine";
  const CombineInputs in(op, y, rows, weights, token_ids);
  const std::optional<Tensor> s = shared ? std::optional(in.like_tokens(op, "shared", *shared)) : std::nullopt;
  const std::optional<Tensor> r = residual ? std::optional(in.like_tokens(op, "residual", *residual)) : std::nullopt;
  if (DeviceCall call(op, in.y); call) return combine_on_device(op, call, in, s, r);
  in.check_rows(op);
  cpu::CombineArguments a{};
  a.dtype = to_dtype(in.y.scalar_type());
  a.tokens = in.tokens, a.top_k = in.top_k, a.hidden = in.y.size(1);
  a.y = const_rows(in.y);
  if (s) a.shared = const_rows(*s);
  if (r) a.residual = const_rows(*r);
  a.rows = const_data<int32_t>(in.rows);
  a.weights = const_data<float>(in.weights);
  Tensor out = empty({a.tokens, a.hidden}, in.y.scalar_type(), in.y);
  a.out = out.mutable_data_ptr();
  cpu::combine(a, torch_threads());
  return out;
}

namespace {

std::tuple<Tensor, Tensor> combine_backward(Tensor grad_out_given, Tensor y, Tensor rows, Tensor weights,
                                            Tensor token_ids) {
  constexpr const char* op = "combine_backward";
  const CombineInputs in(op, y, rows, weights, token_ids);
  const Tensor grad_out = in.like_tokens(op, "grad_out", grad_out_given);
  Tensor grad_y = empty({in.y.size(0), in.y.size(1)}, in.y.scalar_type(), in.y);
  Tensor grad_weights = torch::stable::new_zeros(in.weights, {in.tokens, in.top_k});
  if (DeviceCall call(op, in.y); call) {
    auto a = in.device_arguments<kernels::CombineBackwardArguments>(call);
    a.grad_out = call.reads<void>("grad_out", grad_out), a.grad_out_stride = grad_out.stride(0);
    a.token_ids = call.reads<int32_t>("token_ids", in.token_ids);
    a.grad_y = call.writes<void>("grad_y", grad_y);
    a.grad_weights = call.writes<float>("grad_weights", grad_weights);
    const int64_t alignment = minimum(row_alignment(grad_y), minimum(row_alignment(in.y), row_alignment(grad_out)));
    const host::RowMovementPlan plan = host::plan_row_movement(
        {host::RowMovement::combine_backward, to_dtype(in.y.scalar_type()), a.rows_of_y, a.hidden, alignment});
    host::launch_combine_backward(plan, a, call.stream());
    call.finish();
    return {grad_y, grad_weights};
  }
  in.check_rows(op);
  const int64_t rows_of_y = in.y.size(0), assignments = in.tokens * in.top_k;
  check(assignments < kLargestRow, op, "rows", "holds ", assignments, " assignments; allowed: fewer than 2^31");
  // The other direction of `rows`: a row belongs to one assignment, so every gradient is written by one task.
  std::vector<int32_t> assignment_of_row(rows_of_y, -1);
  const int32_t* numbers = const_data<int32_t>(in.rows);
  for (int64_t i = 0; i < assignments; ++i) {
    if (numbers[i] < 0) continue;
    int32_t& assignment = assignment_of_row[numbers[i]];
    check(assignment < 0, op, "rows", "holds row ", numbers[i], " twice, at assignments ", assignment, " and ", i,
          "; a row belongs to one assignment");
    assignment = static_cast<int32_t>(i);
  }
  cpu::CombineBackwardArguments a{};
  a.dtype = to_dtype(in.y.scalar_type());
  a.tokens = in.tokens, a.top_k = in.top_k, a.hidden = in.y.size(1), a.rows_of_y = rows_of_y;
  a.grad_out = const_rows(grad_out);
  a.y = const_rows(in.y);
  a.assignments = assignment_of_row.data();
  a.weights = const_data<float>(in.weights);
  a.grad_y = grad_y.mutable_data_ptr();
  a.grad_weights = data<float>(grad_weights);
  cpu::combine_backward(a, torch_threads());
  return {grad_y, grad_weights};
}

}  // namespace
}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def("dispatch(Tensor x, Tensor token_ids, Tensor expert_offsets, Tensor rows) -> Tensor");
  m.def("dispatch_(Tensor(a!) out, Tensor x, Tensor token_ids, Tensor expert_offsets) -> ()");
  m.def("dispatch_fp8(Tensor x, Tensor token_ids, Tensor expert_offsets) -> (Tensor q, Tensor scale)");
  m.def("dispatch_fp8_static(Tensor x, Tensor token_ids, Tensor expert_offsets, Tensor scale) -> Tensor");
  m.def("combine(Tensor y, Tensor rows, Tensor weights, Tensor token_ids, Tensor? shared, Tensor? residual) -> Tensor");
  m.def(
      "combine_backward(Tensor grad_out, Tensor y, Tensor rows, Tensor weights, Tensor token_ids) -> (Tensor grad_y, "
      "Tensor "
      "grad_weights)");
}

#define HK_DISPATCH_FOR(backend)                                                     \
  STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, backend, m) {                           \
    m.impl("dispatch", TORCH_BOX(&hunyuan_kernels::dispatch));                       \
    m.impl("dispatch_", TORCH_BOX(&hunyuan_kernels::dispatch_));                     \
    m.impl("dispatch_fp8", TORCH_BOX(&hunyuan_kernels::dispatch_fp8));               \
    m.impl("dispatch_fp8_static", TORCH_BOX(&hunyuan_kernels::dispatch_fp8_static)); \
    m.impl("combine", TORCH_BOX(&hunyuan_kernels::combine));                         \
    m.impl("combine_backward", TORCH_BOX(&hunyuan_kernels::combine_backward));       \
  }
HK_DISPATCH_FOR(CPU)
HK_DISPATCH_FOR(CUDA)
#undef HK_DISPATCH_FOR
