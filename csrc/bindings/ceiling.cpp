// The probes of cpu/ceiling.h for benches: Python takes the time.
#include "cpu/ceiling.h"

#include "bindings/torch_glue.h"

namespace hunyuan_kernels {
namespace {

constexpr int64_t kGranule = 1024, kAlignment = 64;

int64_t checked_bytes(const char* op, const char* argument, const Tensor& buffer) {
  check_cpu(op, argument, buffer);
  check_dtype(op, argument, buffer, {ScalarType::Byte});
  check_rank(op, argument, buffer, 1, "[bytes]");
  check(buffer.stride(0) == 1 && buffer.size(0) % kGranule == 0, op, argument, "has shape ", shape_text(buffer),
        "; required: contiguous, a multiple of ", kGranule);
  return buffer.size(0);
}

int64_t ceiling_multiply(ScalarType dtype, int64_t flops) {
  check(dtype == ScalarType::BFloat16 || dtype == ScalarType::Float, "ceiling_multiply", "dtype", "is ",
        dtype_name(dtype), "; allowed: bfloat16, float32");
  check(flops >= 0, "ceiling_multiply", "flops", "is ", flops, "; at least 0 is required");
  return cpu::multiply_at_best(to_dtype(dtype), flops, torch_threads());
}

void ceiling_read(Tensor from) {
  const int64_t bytes = checked_bytes("ceiling_read", "source", from);
  cpu::read_at_best(from.data_ptr(), bytes, torch_threads());
}

void ceiling_copy(Tensor from, Tensor to) {
  const int64_t bytes = checked_bytes("ceiling_copy", "source", from);
  check_shape("ceiling_copy", "target", to, {bytes}, "that of source");
  checked_bytes("ceiling_copy", "target", to);
  check(reinterpret_cast<uintptr_t>(to.data_ptr()) % kAlignment == 0, "ceiling_copy", "target", "is not aligned to ",
        kAlignment, " bytes");
  cpu::copy_at_best(from.data_ptr(), to.data_ptr(), bytes, torch_threads());
}

}  // namespace
}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def("ceiling_multiply(ScalarType dtype, int flops) -> int");
  m.def("ceiling_read(Tensor source) -> ()");
  m.def("ceiling_copy(Tensor source, Tensor(a!) target) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, CompositeExplicitAutograd, m) {
  m.impl("ceiling_multiply", TORCH_BOX(&hunyuan_kernels::ceiling_multiply));
  m.impl("ceiling_read", TORCH_BOX(&hunyuan_kernels::ceiling_read));
  m.impl("ceiling_copy", TORCH_BOX(&hunyuan_kernels::ceiling_copy));
}
