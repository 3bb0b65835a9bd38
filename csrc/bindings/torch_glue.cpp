#include "bindings/torch_glue.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "common/float_environment.h"
#include "common/huge_pages.h"
#include "common/integer_math.h"

namespace hunyuan_kernels {
namespace {

thread_local bool fills_new_memory = false;

class TorchThreadPool final : public ThreadPool {
 public:
  int size() const override { return static_cast<int>(torch::stable::get_num_threads()); }
  void run(int threads, void (*body)(void*, int), void* context) const override {
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      DefaultFloatEnvironment environment;
      for (int64_t thread = begin; thread < end; ++thread) body(context, static_cast<int>(thread));
    });
  }
};

}  // namespace

const ThreadPool& torch_threads() {
  static const TorchThreadPool pool;
  return pool;
}

std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Float8_e4m3fnuz: return "float8_e4m3fnuz";
    case ScalarType::Float8_e5m2: return "float8_e5m2";
    case ScalarType::Float8_e5m2fnuz: return "float8_e5m2fnuz";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return "torch dtype number " + std::to_string(static_cast<int>(dtype));
  }
}

std::string shape_text(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t d = 0; d < sizes.size(); ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
  return text + "]";
}

std::string shape_text(const Tensor& tensor) {
  return shape_text(std::vector<int64_t>(tensor.sizes().begin(), tensor.sizes().end()));
}

std::string device_text(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return "device type " + std::to_string(static_cast<int>(tensor.device().type()));
}

DType to_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::BFloat16: return DType::bfloat16;
    case ScalarType::Float8_e4m3fn: return DType::float8_e4m3fn;
    case ScalarType::Int: return DType::int32;
    case ScalarType::Long: return DType::int64;
    default:
      check(false, "to_dtype", "dtype", "is ", dtype_name(dtype), ", which has no kernel");
      return DType::float32;
  }
}

// torch lets None through where a schema asks for a tensor.
void check_given(const char* op, const char* argument, const Tensor& tensor) {
  check(tensor.defined(), op, argument, "is None; a tensor is required");
}

void check_cpu(const char* op, const char* argument, const Tensor& tensor) {
  check_given(op, argument, tensor);
  check(tensor.is_cpu(), op, argument, "must be on the CPU like the other arguments, but it is on ",
        device_text(tensor));
}

void check_same_device(const char* op, const char* argument, const Tensor& tensor, const char* other_argument,
                       const Tensor& other) {
  check_given(op, argument, tensor);
  check_given(op, other_argument, other);
  check(tensor.device() == other.device(), op, argument, "is on ", device_text(tensor), ", but ", other_argument,
        " is on ", device_text(other), "; they must be on the same device");
}

void check_dtype(const char* op, const char* argument, const Tensor& tensor,
                 std::initializer_list<ScalarType> allowed) {
  check_given(op, argument, tensor);
  for (ScalarType dtype : allowed)
    if (tensor.scalar_type() == dtype) return;
  std::string names;
  for (ScalarType dtype : allowed) names += (names.empty() ? "" : ", ") + dtype_name(dtype);
  check(false, op, argument, "has dtype ", dtype_name(tensor.scalar_type()), "; allowed: ", names);
}

void check_rank(const char* op, const char* argument, const Tensor& tensor, int64_t rank, const char* shape) {
  check(tensor.dim() == rank, op, argument, "has shape ", shape_text(tensor), "; ", rank,
        " dimensions are required: ", shape);
}

void check_shape(const char* op, const char* argument, const Tensor& tensor, std::initializer_list<int64_t> sizes,
                 const char* shape) {
  bool same = tensor.dim() == static_cast<int64_t>(sizes.size());
  std::string required = "[";
  int64_t d = 0;
  for (int64_t size : sizes) {
    if (same && size >= 0 && tensor.size(d) != size) same = false;
    required += (d ? ", " : "") + (size < 0 ? std::string("any") : std::to_string(size));
    ++d;
  }
  if (!same) check(false, op, argument, "has shape ", shape_text(tensor), "; required: ", shape, " = ", required, "]");
}

namespace {

// First and last address, the latter exclusive; equal for a tensor without elements.
std::pair<uintptr_t, uintptr_t> addresses(const Tensor& tensor) {
  const auto first = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  if (tensor.numel() == 0) return {first, first};
  int64_t elements = 1;
  for (int64_t d = 0; d < tensor.dim(); ++d) elements += (tensor.size(d) - 1) * tensor.stride(d);
  return {first, first + static_cast<uintptr_t>(elements) * tensor.element_size()};
}

}  // namespace

void check_written(const char* op, const char* argument, const Tensor& tensor,
                   std::initializer_list<NamedTensor> read) {
  const auto [begin, end] = addresses(tensor);
  if (begin == end) return;
  for (const NamedTensor& other : read) {
    check_given(op, other.name, other.tensor);
    const auto [other_begin, other_end] = addresses(other.tensor);
    check(other_begin == other_end || end <= other_begin || other_end <= begin, op, argument, "shares memory with ",
          other.name, ", which would be written over while it is read");
  }
  std::vector<std::pair<int64_t, int64_t>> dimensions;  // stride, size
  for (int64_t d = 0; d < tensor.dim(); ++d)
    if (tensor.size(d) > 1) dimensions.emplace_back(tensor.stride(d), tensor.size(d));
  std::sort(dimensions.begin(), dimensions.end());
  int64_t reach = 1;  // elements spanned by the dimensions so far
  for (auto [stride, size] : dimensions) {
    check(stride >= reach, op, argument, "has strides that make elements share memory; call .contiguous()");
    reach = stride * (size - 1) + reach;
  }
}

Tensor with_contiguous_rows(const Tensor& tensor) {
  int64_t last = tensor.dim() - 1;
  if (last < 0 || tensor.size(last) <= 1 || tensor.stride(last) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}

Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

int64_t row_alignment(const Tensor& matrix) {
  uint64_t bits = reinterpret_cast<uintptr_t>(matrix.const_data_ptr()) | 256;
  if (matrix.size(0) > 1) bits |= static_cast<uint64_t>(matrix.stride(0) * matrix.element_size());
  return static_cast<int64_t>(bits & -bits);
}

std::vector<int64_t> checked_expert_offsets(const char* op, const Tensor& expert_offsets, int64_t num_experts,
                                            int64_t rows, const char* rows_name) {
  const char* argument = "expert_offsets";
  check_cpu(op, argument, expert_offsets);
  check_dtype(op, argument, expert_offsets, {ScalarType::Int});
  check_shape(op, argument, expert_offsets, {num_experts + 1}, "[E + 1]");
  const int32_t* values = const_data<int32_t>(expert_offsets);
  const int64_t stride = expert_offsets.stride(0);
  std::vector<int64_t> offsets(static_cast<size_t>(num_experts + 1));
  for (int64_t e = 0; e <= num_experts; ++e) offsets[e] = values[e * stride];
  check(offsets[0] == 0, op, argument, "starts with ", offsets[0], " at index 0; it must start with 0");
  for (int64_t e = 0; e < num_experts; ++e)
    check(offsets[e] <= offsets[e + 1], op, argument, "decreases from ", offsets[e], " at index ", e, " to ",
          offsets[e + 1], " at index ", e + 1, "; it must not decrease");
  check(offsets[num_experts] <= rows, op, argument, "ends with ", offsets[num_experts], " at index ", num_experts,
        ", but ", rows_name, " = ", rows, "; it must end with at most the number of rows");
  return offsets;
}

Tensor empty_activation_scale(int64_t batch, int64_t rows, int64_t blocks, const Tensor& like) {
  const int64_t padded = round_up(rows, 4), last = batch >= 0 ? 2 : 1;
  Tensor base = batch >= 0 ? empty({batch, blocks, padded}, ScalarType::Float, like)
                           : empty({blocks, padded}, ScalarType::Float, like);
  base = torch::stable::transpose(base, last - 1, last);
  return torch::stable::narrow(base, last - 1, 0, rows);
}

void fill_new_memory(bool fill) { fills_new_memory = fill; }

Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  // Not new_empty, which goes through the dispatcher: an op on a few rows takes microseconds.
  constexpr size_t kMaxRank = 8;
  check(sizes.size() <= kMaxRank, "empty", "sizes", "has ", sizes.size(), " dimensions; allowed: at most ", kMaxRank);
  int64_t strides[kMaxRank], stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= maximum(1, sizes.begin()[d]);
  }
  const torch::stable::Device device = like.device();
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(device.type())), device.index(), &handle));
  Tensor tensor(handle);
  if (tensor.is_cpu()) {
    const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
    prefer_huge_pages(tensor.mutable_data_ptr(), bytes);
    if (fills_new_memory) std::memset(tensor.mutable_data_ptr(), 0xff, static_cast<size_t>(bytes));
  }
  return tensor;
}

}  // namespace hunyuan_kernels
