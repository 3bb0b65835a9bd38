#include "bindings/expert_arguments.h"

#include "cpu/prepack.h"

namespace hunyuan_kernels {
namespace {

cpu::ExpertWeights weights_in_place(const char* op, const char* argument, const Tensor& b, int64_t experts,
                                    int64_t expert_stride) {
  const int64_t d = b.dim() - 2, rows = b.size(d), columns = b.size(d + 1);
  cpu::ExpertWeights weights = {
      b.mutable_data_ptr(), to_dtype(b.scalar_type()), experts, rows, columns, expert_stride, b.stride(d),
      b.stride(d + 1)};
  if (columns <= 1)
    weights.column_stride = 1;
  else if (rows <= 1 && weights.column_stride != 1)
    weights.row_stride = 1;
  check(weights.row_stride == 1 || weights.column_stride == 1, op, argument, "has strides ",
        shape_text(std::vector<int64_t>(b.strides().begin(), b.strides().end())),
        "; one of the last two must be 1 (a transposed view is fine): call .contiguous()");
  return weights;
}

// [N / 16, K / word, 16, word] behind the experts, contiguous.
cpu::ExpertWeights packed_weights(const char* op, const char* argument, const Tensor& b) {
  const int64_t d = b.dim() - 4, word = cpu::packed_word(to_dtype(b.scalar_type()));
  check(b.size(d + 2) != 32 || b.size(d + 3) != 16, op, argument, "has shape ", shape_text(b),
        ": it was packed for a GPU, of which it has the order. Call hunyuan_kernels.prepack on the weights on the CPU");
  check(b.size(d + 2) == cpu::kPackedColumns && b.size(d + 3) == word && b.is_contiguous(), op, argument, "has shape ",
        shape_text(b), " and strides ", shape_text(std::vector<int64_t>(b.strides().begin(), b.strides().end())),
        "; packed weights are as hunyuan_kernels.prepack returns them: contiguous, ending with dimensions ",
        shape_text({cpu::kPackedColumns, word}), " for ", dtype_name(b.scalar_type()));
  cpu::ExpertWeights weights{};
  weights.data = b.mutable_data_ptr();
  weights.dtype = to_dtype(b.scalar_type());
  weights.experts = d ? b.size(0) : 1;
  weights.rows = b.size(d) * cpu::kPackedColumns;
  weights.columns = b.size(d + 1) * word;
  weights.expert_stride = weights.rows * weights.columns;
  weights.packed = true;
  return weights;
}

bool is_packed(const char* op, const char* argument, const Tensor& b, int64_t rank, Packed packed) {
  if (b.dim() != rank + 2) return false;
  check(packed == Packed::allowed, op, argument, "has shape ", shape_text(b),
        ", that of packed weights; this op needs them as they were before hunyuan_kernels.prepack");
  return true;
}

}  // namespace

cpu::Rows rows_of(const Tensor& matrix) {
  return {matrix.mutable_data_ptr(), to_dtype(matrix.scalar_type()), matrix.size(0), matrix.size(1), matrix.stride(0)};
}

cpu::ExpertWeights expert_weights(const char* op, const char* argument, const Tensor& b, DTypes dtypes,
                                  const char* shape, Packed packed) {
  check_cpu(op, argument, b);
  check_dtype(op, argument, b, dtypes);
  if (is_packed(op, argument, b, 3, packed)) return packed_weights(op, argument, b);
  check_rank(op, argument, b, 3, shape);
  return weights_in_place(op, argument, b, b.size(0), b.stride(0));
}

cpu::ExpertWeights matrix_weights(const char* op, const char* argument, const Tensor& b, DTypes dtypes,
                                  const char* shape, Packed packed) {
  check_cpu(op, argument, b);
  check_dtype(op, argument, b, dtypes);
  if (is_packed(op, argument, b, 2, packed)) return packed_weights(op, argument, b);
  check_rank(op, argument, b, 2, shape);
  return weights_in_place(op, argument, b, 1, 0);
}

void check_halves(const char* op, const char* argument, const Tensor& gate_up, const cpu::ExpertWeights& weights) {
  check(weights.rows % 2 == 0, op, argument, "has shape ", shape_text(gate_up),
        "; dimension 1 must be even: I rows of gate, then I rows of up");
  check(!weights.packed || weights.rows / 2 % cpu::kPackedColumns == 0, op, argument, "has packed shape ",
        shape_text(gate_up), ", with I = ", weights.rows / 2, " rows of gate; packed weights need a multiple of ",
        cpu::kPackedColumns, ": pass them unpacked");
}

cpu::ExpertWeights transposed(cpu::ExpertWeights weights) {
  std::swap(weights.rows, weights.columns);
  std::swap(weights.row_stride, weights.column_stride);
  return weights;
}

Tensor activations(const char* op, const char* argument, const Tensor& matrix, DTypes dtypes, int64_t columns,
                   const char* shape) {
  check_cpu(op, argument, matrix);
  check_dtype(op, argument, matrix, dtypes);
  check_rank(op, argument, matrix, 2, shape);
  if (columns >= 0) check_shape(op, argument, matrix, {-1, columns}, shape);
  return with_contiguous_rows(matrix);
}

ScalarType checked_out_dtype(const char* op, ScalarType dtype) {
  check(dtype == ScalarType::BFloat16 || dtype == ScalarType::Float, op, "out_dtype", "is ", dtype_name(dtype),
        "; allowed: bfloat16, float32");
  return dtype;
}

}  // namespace hunyuan_kernels
