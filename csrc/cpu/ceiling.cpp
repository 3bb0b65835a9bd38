// Tasks are handed out dynamically, as in the kernels: a core that is slow for a while must not decide the result.
#include "cpu/ceiling.h"

#include <atomic>

#include "common/integer_math.h"
#include "cpu/isa/microkernels.h"

namespace hunyuan_kernels::cpu {
namespace {

constexpr int64_t kFlopsPerTask = int64_t{1} << 24, kBytesPerTask = int64_t{1} << 17, kGranule = 1024;
std::atomic<uint32_t> sink;  // what was computed counts as used

// Small buffers are shared out, too.
int64_t bytes_per_task(int64_t bytes, const ThreadPool& pool) {
  return minimum(kBytesPerTask, ceil_div(bytes, 4 * kGranule * pool.size()) * kGranule);
}

}  // namespace

int64_t multiply_at_best(DType dtype, int64_t flops, const ThreadPool& pool) {
  const CeilingKernels& kernels = microkernels().ceiling;
  const bool pairs = dtype == DType::bfloat16;
  const auto multiply = pairs ? kernels.multiply_bfloat16 : kernels.multiply_float;
  const int64_t per_step = pairs ? kernels.multiply_bfloat16_flops : kernels.multiply_float_flops;
  if (!multiply) return 0;
  const int64_t steps = kFlopsPerTask / per_step, tasks = ceil_div(flops, steps * per_step);
  parallel_tasks(pool, tasks, [&](int64_t, int) { sink += multiply(steps) > 0.0f; });
  return tasks * steps * per_step;
}

void read_at_best(const void* from, int64_t bytes, const ThreadPool& pool) {
  const CeilingKernels& kernels = microkernels().ceiling;
  parallel_ranges(pool, bytes, bytes_per_task(bytes, pool), [&](int64_t begin, int64_t end, int) {
    sink += kernels.read(static_cast<const char*>(from) + begin, end - begin);
  });
}

void copy_at_best(const void* from, void* to, int64_t bytes, const ThreadPool& pool) {
  const CeilingKernels& kernels = microkernels().ceiling;
  parallel_ranges(pool, bytes, bytes_per_task(bytes, pool), [&](int64_t begin, int64_t end, int) {
    kernels.copy(static_cast<const char*>(from) + begin, static_cast<char*>(to) + begin, end - begin);
  });
}

}  // namespace hunyuan_kernels::cpu
