// Kernels that move more than their shapes demand. out[i] = x[i] + x[i], each read being a load of its own.
extern "C" __global__ void read_twice(float* out, const float* x, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const volatile float* loaded = x;
  if (i < count) out[i] = loaded[i] + loaded[i];
}

extern "C" __global__ void everything_twice(float* out, const float* x, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const volatile float* loaded = x;
  volatile float* stored = out;
  stored[i] = loaded[i];
  stored[i] = loaded[i] * 2.0f;
}
