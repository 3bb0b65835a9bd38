// The floating-point environment in which kernels run.
#pragma once
#include <fenv.h>

namespace hunyuan_kernels {

// While alive, this thread rounds to nearest and keeps subnormal numbers, whatever the caller has set
// (torch.set_flush_denormal). The conversions of FP8 and bf16 rely on it.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() {
    fegetenv(&saved_);
    fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatEnvironment() { fesetenv(&saved_); }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
  fenv_t saved_;
};

}  // namespace hunyuan_kernels
