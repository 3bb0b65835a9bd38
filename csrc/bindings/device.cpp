// Ops about the device code of this build.
#include "bindings/torch_glue.h"
#include "driver/device_image.h"

namespace hunyuan_kernels {
namespace {

std::string device_stems() {
  std::string stems;
  for (const driver::DeviceImage& image : driver::device_images())
    stems += (stems.empty() ? "" : ",") + std::string(image.stem);
  return stems;
}

// For sm_90a, or (portable) for compute_80.
std::string device_ptx(std::string stem, bool portable) {
  const driver::DeviceImage* image = driver::find_device_image(stem);
  check(image, "device_ptx", "stem", "is '", stem, "', but this build has device code for: ",
        driver::device_images().empty() ? "nothing (it was made without nvcc)" : device_stems());
  check(!portable || image->is_portable(), "device_ptx", "portable", "is true, but '", stem, "' needs sm_90a");
  return portable ? image->portable_ptx.begin : image->ptx.begin;
}

}  // namespace
}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def("device_stems() -> str");
  m.def("device_ptx(str stem, bool portable=False) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, CompositeExplicitAutograd, m) {
  m.impl("device_stems", TORCH_BOX(&hunyuan_kernels::device_stems));
  m.impl("device_ptx", TORCH_BOX(&hunyuan_kernels::device_ptx));
}
