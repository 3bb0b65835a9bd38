// Splits PTX text into tokens. Dotted opcodes and directives stay one token.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hunyuan_kernels::simulator {

enum class TokenKind : uint8_t { Word, Directive, Integer, Float, String, Punct, End };

struct Token {
  TokenKind kind = TokenKind::End;
  std::string_view text;  // points into the PTX source
  uint32_t line = 0;
  uint64_t bits = 0;        // integer value, or the bit pattern of a float
  uint8_t float_bytes = 0;  // 4 for 0f..., 8 for 0d... and decimal floats
};

std::vector<Token> tokenize(const std::string& source);

}  // namespace hunyuan_kernels::simulator
