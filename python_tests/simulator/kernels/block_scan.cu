// CUB's block-wide scan, unmodified, in its three algorithms: shared memory, shuffles and barriers in library code.
#include <cub/block/block_scan.cuh>

template <cub::BlockScanAlgorithm kAlgorithm>
__device__ void scan(const int* in, int* inclusive, int* exclusive, int* total) {
  constexpr int kThreads = 160, kItems = 3;
  using Scan = cub::BlockScan<int, kThreads, kAlgorithm>;
  __shared__ typename Scan::TempStorage storage;
  const int first = (blockIdx.x * kThreads + threadIdx.x) * kItems;
  int items[kItems], sums[kItems], sum;
  for (int i = 0; i < kItems; ++i) items[i] = in[first + i];
  Scan(storage).InclusiveSum(items, sums, sum);
  for (int i = 0; i < kItems; ++i) inclusive[first + i] = sums[i];
  __syncthreads();
  Scan(storage).ExclusiveSum(items, sums);
  for (int i = 0; i < kItems; ++i) exclusive[first + i] = sums[i];
  if (threadIdx.x == 0) total[blockIdx.x] = sum;
}

extern "C" __global__ void raking(const int* in, int* inclusive, int* exclusive, int* total) {
  scan<cub::BLOCK_SCAN_RAKING>(in, inclusive, exclusive, total);
}
extern "C" __global__ void raking_memoize(const int* in, int* inclusive, int* exclusive, int* total) {
  scan<cub::BLOCK_SCAN_RAKING_MEMOIZE>(in, inclusive, exclusive, total);
}
extern "C" __global__ void warp_scans(const int* in, int* inclusive, int* exclusive, int* total) {
  scan<cub::BLOCK_SCAN_WARP_SCANS>(in, inclusive, exclusive, total);
}
