// The ops of the stem `fp8_gemm` on a GPU or the simulated one: checks, operands as TMA wants them, plan, launch.
#pragma once
#include "bindings/device_call.h"
#include "cpu/fp8_gemm.h"
#include "host/fp8_gemm.h"

namespace hunyuan_kernels::device {

// A checked scale of weights, contiguous, as kernels take it.
kernels::Fp8WeightScale kernel_scale(DeviceCall& call, const char* name, const Tensor& scale,
                                     const cpu::WeightScale& strides);

// b [N, K] without expert_offsets, else [E, N, K]; with `swiglu` [E, 2I, K]. `out_scale` with float8_e4m3fn alone: one
// scale that has been checked; or none, and fresh ones of 1 x 128 blocks are put there.
Tensor multiply_fp8(const char* op, DeviceCall& call, bool swiglu, const Tensor& a, const char* b_name, const Tensor& b,
                    const std::optional<Tensor>& expert_offsets, const std::optional<Tensor>& a_scale,
                    const Tensor& b_scale, ScalarType out_dtype, std::optional<Tensor>* out_scale = nullptr);

// e4m3 weights under bf16 activations; weights as they are or as prepack_weights returns them.
struct WeightOnlyNames {
  const char *op, *a, *b, *b_scale;
};
Tensor multiply_fp8_weights(DeviceCall& call, const WeightOnlyNames& names, bool swiglu, const Tensor& a,
                            const Tensor& b, const std::optional<Tensor>& expert_offsets, const Tensor& b_scale,
                            ScalarType out_dtype);

// grad_out [M, N] in bf16, or fp32 that is rounded to bf16, times e4m3 weights [N, K]: [M, K]. With expert_offsets each
// group's rows by its [N, K] of [E, N, K]. Scales of matrices or of blocks.
Tensor fp8_weights_gradient(DeviceCall& call, const WeightOnlyNames& names, const Tensor& grad_out,
                            const Tensor& weights, const std::optional<Tensor>& expert_offsets, const Tensor& scale,
                            ScalarType out_dtype);

// e4m3 [..., N, K] as [..., N / 16, K / 32, 32, 16]: for each lane of a warp the 16 bytes that it reads at a time. bf16
// as it is, copied.
Tensor prepack_weights(const char* op, const Tensor& weights);

}  // namespace hunyuan_kernels::device
