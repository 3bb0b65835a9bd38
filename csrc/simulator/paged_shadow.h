// State beside every 4 bytes of global memory; only pages that were touched take space.
#pragma once
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace hunyuan_kernels::simulator {

template <typename T>
class PagedShadow {
 public:
  T& at(uint64_t granule) {
    if (granule / kGranules != page_ || !last_) {
      page_ = granule / kGranules;
      auto& slot = pages_[page_];
      if (!slot) slot = std::make_unique<T[]>(kGranules);
      last_ = slot.get();
    }
    return last_[granule % kGranules];
  }
  const T* find(uint64_t granule) const {
    auto it = pages_.find(granule / kGranules);
    return it == pages_.end() ? nullptr : &it->second[granule % kGranules];
  }

 private:
  static constexpr uint64_t kGranules = 1024;
  std::unordered_map<uint64_t, std::unique_ptr<T[]>> pages_;
  uint64_t page_ = 0;
  T* last_ = nullptr;
};

// The bytes of granule `granule` that lie in [begin, begin + bytes).
inline uint8_t granule_mask(uint64_t granule, uint64_t begin, uint64_t bytes) {
  const uint64_t at = granule * 4;
  const uint64_t first = begin > at ? begin - at : 0, last = begin + bytes < at + 4 ? begin + bytes - at : 4;
  return uint8_t(((1u << last) - 1) & ~((1u << first) - 1));
}

}  // namespace hunyuan_kernels::simulator
