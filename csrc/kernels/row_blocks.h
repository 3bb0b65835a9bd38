// How kernels that go by the rows of a matrix are launched: blockDim = (threads of a row, rows of a block), at most
// kRowBlockThreads in all, the threads of a row being whole warps. See host/row_blocks.h and tile/rows.cuh.
#pragma once

namespace hunyuan_kernels::kernels {

constexpr int kRowBlockThreads = 256;
constexpr int kRowVectors = 4;  // loads of a thread in flight

}  // namespace hunyuan_kernels::kernels
