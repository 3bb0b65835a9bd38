// Memory in huge pages, where the operating system leaves the choice to programs.
#pragma once
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>

#include "common/integer_math.h"
#endif

namespace hunyuan_kernels {

// Smaller buffers gain little, and the unused part of a last page would count.
constexpr int64_t kHugePagesFrom = int64_t{4} << 20;

// Asks for huge pages in a buffer that nobody has written to yet. Writing 256 MiB for the first time then takes 128
// page faults, not 65536. A request only: nothing depends on whether the system follows it.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kPage = int64_t{2} << 20;  // whole ones only: the rest may be shared with other buffers
  if (bytes < kHugePagesFrom) return;
  const auto first = round_up(reinterpret_cast<int64_t>(data), kPage);
  const auto last = (reinterpret_cast<int64_t>(data) + bytes) / kPage * kPage;
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), static_cast<size_t>(last - first), MADV_HUGEPAGE);
#endif
}

}  // namespace hunyuan_kernels
