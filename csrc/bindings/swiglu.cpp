// swiglu and its gradient: schemas, checks, allocation.
#include "cpu/swiglu.h"

#include "bindings/device_call.h"
#include "bindings/expert_arguments.h"
#include "common/integer_math.h"
#include "host/swiglu.h"

namespace hunyuan_kernels {
namespace {

// A matrix of rows whose elements are contiguous.
Tensor checked_rows(const char* op, const char* argument, const Tensor& matrix, const char* shape) {
  check_dtype(op, argument, matrix, {ScalarType::BFloat16, ScalarType::Float});
  check_rank(op, argument, matrix, 2, shape);
  return with_contiguous_rows(matrix);
}

// x [S, 2I] and the optional offsets whose last one says how many rows are in use.
struct SwigluInputs {
  SwigluInputs(const char* op_, const char* argument, const Tensor& x_given, const std::optional<Tensor>& offsets_given)
      : op(op_), x(checked_rows(op, argument, x_given, "[S, 2I]")), rows(x.size(0)), columns(x.size(1) / 2) {
    check(x.size(1) % 2 == 0, op, argument, "has shape ", shape_text(x_given),
          "; dimension 1 must be even: I columns of gate, then I columns of up");
    if (!offsets_given) return;
    check_same_device(op, "expert_offsets", *offsets_given, argument, x);
    check_dtype(op, "expert_offsets", *offsets_given, {ScalarType::Int});
    check_rank(op, "expert_offsets", *offsets_given, 1, "[E + 1]");
    check(offsets_given->size(0) >= 1, op, "expert_offsets", "is empty; required: [E + 1]");
    offsets = as_contiguous(*offsets_given);
  }

  // On the CPU, where the values are checked.
  int64_t rows_used() const {
    return offsets ? checked_expert_offsets(op, *offsets, offsets->size(0) - 1, rows, "S").back() : rows;
  }
  // On a device.
  const int32_t* last_offset(DeviceCall& call) const {
    return offsets ? call.reads<int32_t>("expert_offsets", *offsets) + offsets->size(0) - 1 : nullptr;
  }

  const char* op;
  Tensor x;
  int64_t rows, columns;
  std::optional<Tensor> offsets;
};

Tensor swiglu(Tensor x_given, std::optional<Tensor> expert_offsets) {
  const SwigluInputs in("swiglu", "x", x_given, expert_offsets);
  const Tensor out = empty({in.rows, in.columns}, in.x.scalar_type(), in.x);
  DeviceCall call(in.op, in.x);
  if (!call) {
    cpu::swiglu(rows_of(in.x), in.rows_used(), rows_of(out), torch_threads());
    return out;
  }
  kernels::SwigluArguments a{};
  a.x = call.reads<void>("x", in.x), a.x_stride = in.x.stride(0);
  a.rows_used = in.last_offset(call);
  a.out = call.writes<void>("out", out);
  const int64_t alignment = minimum(row_alignment(in.x), row_alignment(out));
  host::launch_swiglu(host::plan_swiglu({false, to_dtype(in.x.scalar_type()), in.rows, in.columns, alignment}), a,
                      call.stream());
  call.finish();
  return out;
}

Tensor swiglu_backward(Tensor grad_out_given, Tensor x_given, std::optional<Tensor> expert_offsets) {
  const SwigluInputs in("swiglu_backward", "preactivation", x_given, expert_offsets);
  const Tensor grad_out = checked_rows(in.op, "grad_out", grad_out_given, "[S, I]");
  check_same_device(in.op, "grad_out", grad_out, "preactivation", in.x);
  check_shape(in.op, "grad_out", grad_out, {in.rows, in.columns}, "[S, I]");
  check(grad_out.scalar_type() == in.x.scalar_type(), in.op, "grad_out", "has dtype ",
        dtype_name(grad_out.scalar_type()), ", but preactivation has ", dtype_name(in.x.scalar_type()),
        "; both must be the same");
  const Tensor grad_x = empty({in.rows, 2 * in.columns}, in.x.scalar_type(), in.x);
  DeviceCall call(in.op, in.x);
  if (!call) {
    cpu::swiglu_backward(rows_of(grad_out), rows_of(in.x), in.rows_used(), rows_of(grad_x), torch_threads());
    return grad_x;
  }
  kernels::SwigluBackwardArguments a{};
  a.grad_out = call.reads<void>("grad_out", grad_out), a.grad_out_stride = grad_out.stride(0);
  a.x = call.reads<void>("preactivation", in.x), a.x_stride = in.x.stride(0);
  a.rows_used = in.last_offset(call);
  a.grad_x = call.writes<void>("grad_preactivation", grad_x);
  const int64_t alignment = minimum(row_alignment(grad_x), minimum(row_alignment(in.x), row_alignment(grad_out)));
  host::launch_swiglu_backward(host::plan_swiglu({true, to_dtype(in.x.scalar_type()), in.rows, in.columns, alignment}),
                               a, call.stream());
  call.finish();
  return grad_x;
}

}  // namespace
}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def("swiglu(Tensor x, Tensor? expert_offsets) -> Tensor");
  m.def("swiglu_backward(Tensor grad_out, Tensor preactivation, Tensor? expert_offsets) -> Tensor");
}

#define HK_SWIGLU_FOR(backend)                                               \
  STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, backend, m) {                   \
    m.impl("swiglu", TORCH_BOX(&hunyuan_kernels::swiglu));                   \
    m.impl("swiglu_backward", TORCH_BOX(&hunyuan_kernels::swiglu_backward)); \
  }
HK_SWIGLU_FOR(CPU)
HK_SWIGLU_FOR(CUDA)
#undef HK_SWIGLU_FOR
