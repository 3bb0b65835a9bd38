// What every binding needs from torch's stable ABI: threads, dtypes, and checks that name op and argument.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/dtype.h"
#include "common/parallel.h"

namespace hunyuan_kernels {

using Tensor = torch::stable::Tensor;
using torch::headeronly::ScalarType;

// torch's intra-op pool: torch.set_num_threads() decides.
const ThreadPool& torch_threads();

std::string dtype_name(ScalarType dtype);  // "bfloat16", "float8_e4m3fnuz", ...
std::string shape_text(const std::vector<int64_t>& sizes);
std::string shape_text(const Tensor& tensor);   // "[8, 4096]"
std::string device_text(const Tensor& tensor);  // "cpu", "cuda:0"
DType to_dtype(ScalarType dtype);  // dtypes of common/dtype.h only; others are refused by check_dtype first

// Each raises std::runtime_error "op: argument ..." with what was got and what is allowed.
void check_cpu(const char* op, const char* argument, const Tensor& tensor);
void check_same_device(const char* op, const char* argument, const Tensor& tensor, const char* other_argument,
                       const Tensor& other);
void check_dtype(const char* op, const char* argument, const Tensor& tensor, std::initializer_list<ScalarType> allowed);
void check_rank(const char* op, const char* argument, const Tensor& tensor, int64_t rank, const char* shape);
// Sizes, with -1 for "any"; `shape` is the symbolic form for the message, such as "[S, K]".
void check_shape(const char* op, const char* argument, const Tensor& tensor, std::initializer_list<int64_t> sizes,
                 const char* shape);

// A tensor that an op writes into shares no memory among its own elements, nor with what the op reads meanwhile: the
// latter by the whole ranges of addresses, gaps between rows included.
struct NamedTensor {
  const char* name;
  const Tensor& tensor;
};
void check_written(const char* op, const char* argument, const Tensor& tensor, std::initializer_list<NamedTensor> read);

// The tensor itself when its last dimension is contiguous (stride 1 or at most one element), else a contiguous copy.
Tensor with_contiguous_rows(const Tensor& tensor);

// The tensor itself when it is contiguous: even then torch::stable::contiguous goes through the dispatcher, half a
// microsecond.
Tensor as_contiguous(const Tensor& tensor);

// The largest power of two, at most 256, that divides the address of every row (in bytes) of a matrix.
int64_t row_alignment(const Tensor& matrix);

// int32 [E + 1] on the CPU, checked: starts at 0, does not decrease, ends at most at `rows` (called `rows_name`, for
// the message).
std::vector<int64_t> checked_expert_offsets(const char* op, const Tensor& expert_offsets, int64_t num_experts,
                                            int64_t rows, const char* rows_name);

// fp32 scales of 1 x 128 blocks, [rows, blocks] or, with batch >= 0, [batch, rows, blocks]: rows are the fastest
// dimension and the stride of a block is padded to a multiple of 4 elements, which is what TMA loads need.
Tensor empty_activation_scale(int64_t batch, int64_t rows, int64_t blocks, const Tensor& like);

// The elements of a tensor whose dtype has been checked.
template <typename Value>
Value* data(const Tensor& tensor) {
  return static_cast<Value*>(tensor.mutable_data_ptr());
}
template <typename Value>
const Value* const_data(const Tensor& tensor) {
  return static_cast<const Value*>(tensor.const_data_ptr());
}

// Contiguous, on the device of `like`. Large ones on a CPU ask for huge pages. After fill_new_memory(true) those of
// this thread on a CPU hold NaN, so that tests see what is not written.
Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like);
void fill_new_memory(bool fill);

}  // namespace hunyuan_kernels
