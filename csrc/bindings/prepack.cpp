// prepack: schema, checks, allocation.
#include "cpu/prepack.h"

#include "bindings/expert_arguments.h"
#include "bindings/fp8_gemm_device.h"
#include "bindings/torch_glue.h"

namespace hunyuan_kernels {
namespace {

constexpr DTypes kElements = {ScalarType::BFloat16, ScalarType::Float, ScalarType::Float8_e4m3fn};

Tensor prepack(const Tensor& given) {
  constexpr const char* op = "prepack";
  if (DeviceCall(op, given)) return device::prepack_weights(op, given);
  check_cpu(op, "weights", given);
  check_dtype(op, "weights", given, kElements);
  check(given.dim() == 2 || given.dim() == 3, op, "weights", "has shape ", shape_text(given),
        "; required: [N, K] or [E, N, K]");
  const DType dtype = to_dtype(given.scalar_type());
  const int64_t d = given.dim() - 2, rows = given.size(d), depth = given.size(d + 1), word = cpu::packed_word(dtype);
  check(rows % cpu::kPackedColumns == 0 && depth % word == 0, op, "weights", "has shape ", shape_text(given),
        " and dtype ", dtype_name(given.scalar_type()), "; N must be a multiple of ", cpu::kPackedColumns, " and K of ",
        word, ": pass weights of other sizes unpacked");
  const bool in_place = (depth <= 1 || given.stride(d + 1) == 1) && given.stride(d) % word == 0;
  const Tensor weights = in_place ? given : torch::stable::contiguous(given);
  const int64_t experts = d ? weights.size(0) : 1;
  Tensor packed =
      d ? empty({experts, rows / cpu::kPackedColumns, depth / word, cpu::kPackedColumns, word}, given.scalar_type(),
                given)
        : empty({rows / cpu::kPackedColumns, depth / word, cpu::kPackedColumns, word}, given.scalar_type(), given);
  const cpu::ExpertWeights b = {weights.mutable_data_ptr(), dtype, experts, rows, depth, d ? weights.stride(0) : 0,
                                weights.stride(d),          1};
  cpu::prepack(cpu::microkernels(), torch_threads(), b, packed.mutable_data_ptr());
  return packed;
}

}  // namespace
}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) { m.def("prepack(Tensor weights) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, CUDA, m) { m.impl("prepack", TORCH_BOX(&hunyuan_kernels::prepack)); }

STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, CPU, m) { m.impl("prepack", TORCH_BOX(&hunyuan_kernels::prepack)); }
