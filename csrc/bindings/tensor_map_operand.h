// Operands and results of products on a device as TMA wants them.
#pragma once
#include <vector>

#include "bindings/torch_glue.h"

namespace hunyuan_kernels::device {

// Whether TMA takes a tensor with this dimension contiguous: address and all other strides multiples of 16 bytes,
// positive and not too large. Strides of dimensions with one element do not matter.
bool suits_tensor_map(const Tensor& tensor, int64_t contiguous);

// Fresh memory that suits: rows of the last dimension padded to 16 bytes. suitable: the tensor, copied if need be.
Tensor padded(std::vector<int64_t> sizes, ScalarType dtype, const Tensor& like);
Tensor suitable(const Tensor& tensor, int64_t contiguous);

// The stride of a dimension, or one that TMA takes where it does not matter.
int64_t stride_of(const Tensor& tensor, int64_t dimension);

// A result that was written with padded rows, without the padding.
Tensor without_padding(Tensor rows, int64_t columns);

// int32 [experts + 1] on the device of x, contiguous. Its values are data: nothing is said about them here.
Tensor checked_offsets(const char* op, const Tensor& expert_offsets, int64_t experts, const Tensor& x,
                       const char* x_name);

}  // namespace hunyuan_kernels::device
