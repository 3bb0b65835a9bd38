#include "bindings/tensor_map_operand.h"

#include "common/integer_math.h"
#include "host/tensor_map.h"

namespace hunyuan_kernels::device {

namespace stable = torch::stable;

bool suits_tensor_map(const Tensor& tensor, int64_t contiguous) {
  const int64_t size = tensor.element_size();
  bool suits = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % host::kTensorMapAlignment == 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) <= 1) continue;
    const int64_t bytes = tensor.stride(d) * size;
    suits &= d == contiguous ? tensor.stride(d) == 1
                             : bytes > 0 && bytes % host::kTensorMapAlignment == 0 && bytes < host::kTensorMapMaxStride;
  }
  return suits;
}

Tensor padded(std::vector<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  const int64_t last = static_cast<int64_t>(sizes.size()) - 1, columns = sizes[last];
  sizes[last] = round_up(columns, host::kTensorMapAlignment / element_size(to_dtype(dtype)));
  Tensor whole = stable::new_empty(like, sizes, dtype);
  return stable::narrow(whole, last, 0, columns);
}
Tensor suitable(const Tensor& tensor, int64_t contiguous) {
  if (suits_tensor_map(tensor, contiguous)) return tensor;
  Tensor copy =
      padded(std::vector<int64_t>(tensor.sizes().begin(), tensor.sizes().end()), tensor.scalar_type(), tensor);
  stable::copy_(copy, tensor);
  return copy;
}

int64_t stride_of(const Tensor& tensor, int64_t dimension) {
  if (tensor.size(dimension) > 1) return tensor.stride(dimension);
  int64_t reach = 1;  // of the other dimensions
  for (int64_t d = 0; d < tensor.dim(); ++d)
    if (tensor.size(d) > 1) reach = maximum(reach, tensor.stride(d) * tensor.size(d));
  return round_up(reach, host::kTensorMapAlignment);
}

Tensor checked_offsets(const char* op, const Tensor& expert_offsets, int64_t experts, const Tensor& x,
                       const char* x_name) {
  check_same_device(op, "expert_offsets", expert_offsets, x_name, x);
  check_dtype(op, "expert_offsets", expert_offsets, {ScalarType::Int});
  check_shape(op, "expert_offsets", expert_offsets, {experts + 1}, "[E + 1]");
  return stable::contiguous(expert_offsets);
}

Tensor without_padding(Tensor rows, int64_t columns) {
  const int64_t last = rows.dim() - 1;
  if (rows.size(last) == columns) return rows;
  return stable::contiguous(stable::narrow(rows, last, 0, columns));
}

}  // namespace hunyuan_kernels::device
