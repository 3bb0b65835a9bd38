// Argument checks with the values in the message. Host side, no torch.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace hunyuan_kernels {

// Raises std::runtime_error "op: argument: message" when the condition does not hold. The message says what was got,
// what is allowed and, where it is not obvious, what to do:
//   check(k == expected, "grouped_gemm", "a", "has K = ", k, " columns, but b has K = ", expected);
template <typename... Parts>
void check(bool condition, const char* op, const char* argument, const Parts&... parts) {
  if (condition) [[likely]]
    return;
  std::ostringstream message;
  message << op << ": " << argument << " ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace hunyuan_kernels
