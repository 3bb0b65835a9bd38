// Programmatic dependent launch, one PTX instruction per function. Before sm_90 kernels of a stream do not overlap, and
// there is nothing to say or to wait for.
#pragma once

namespace hunyuan_kernels::arch {

#if __CUDA_ARCH__ >= 900

// The next kernel of the stream may start once every block has called this or ended. It says nothing about memory.
__device__ __forceinline__ void allow_next_launch() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Until the previous kernel of the stream has ended and its writes are visible; no effect in an ordinary launch.
__device__ __forceinline__ void wait_for_previous_launch() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

#else

__device__ __forceinline__ void allow_next_launch() {}
__device__ __forceinline__ void wait_for_previous_launch() {}

#endif

}  // namespace hunyuan_kernels::arch
