// The ops of the stem `grouped_gemm` on a GPU or the simulated one: checks, operands as TMA wants them, plan, launch.
#pragma once
#include "bindings/device_call.h"
#include "host/grouped_gemm.h"

namespace hunyuan_kernels::device {

// b [E, N, K], or with `transposed` [E, K, N]. form: rows or swiglu; preactivation is written when it is not null.
Tensor multiply_rows(const char* op, DeviceCall& call, host::GroupedGemmForm form, const char* a_name, const Tensor& a,
                     const char* b_name, const Tensor& b, bool transposed, const Tensor& expert_offsets,
                     ScalarType out_dtype, Tensor* preactivation);

// grad_b [E, N, K]: overwritten, or with `accumulate` (float32) added to.
void weight_gradient(const char* op, DeviceCall& call, const Tensor& grad_out, const Tensor& a,
                     const Tensor& expert_offsets, Tensor& grad_b, bool accumulate);

}  // namespace hunyuan_kernels::device
