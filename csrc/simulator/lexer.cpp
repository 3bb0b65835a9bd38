#include "simulator/lexer.h"

#include <cctype>
#include <cstdlib>
#include <cstring>

#include "simulator/error.h"

namespace hunyuan_kernels::simulator {
namespace {

bool is_word_start(char c) { return isalpha((unsigned char)c) || c == '_' || c == '$' || c == '%'; }
bool is_word_char(char c) { return isalnum((unsigned char)c) || c == '_' || c == '$'; }

// End of a word that may contain '.' and '::' parts.
const char* word_end(const char* p, const char* end) {
  while (p < end) {
    if (is_word_char(*p) || *p == '%') {
      ++p;
      continue;
    }
    if (*p == '.' && p + 1 < end && is_word_char(p[1])) {
      ++p;
      continue;
    }
    if (*p == ':' && p + 2 < end && p[1] == ':' && is_word_char(p[2])) {
      p += 2;
      continue;
    }
    break;
  }
  return p;
}

Token lex_number(const char*& p, const char* end, uint32_t line) {
  Token token;
  token.line = line;
  const char* start = p;
  auto hex_float = [&](int digits) {
    std::string hex(p + 2, p + 2 + digits);
    token.kind = TokenKind::Float;
    token.bits = strtoull(hex.c_str(), nullptr, 16);
    token.float_bytes = digits / 2;
    p += 2 + digits;
  };
  if (*p == '0' && p + 9 < end && (p[1] == 'f' || p[1] == 'F')) {
    hex_float(8);
  } else if (*p == '0' && p + 17 < end && (p[1] == 'd' || p[1] == 'D')) {
    hex_float(16);
  } else {
    bool hex = *p == '0' && (p[1] == 'x' || p[1] == 'X');
    bool binary = *p == '0' && (p[1] == 'b' || p[1] == 'B');
    const char* q = p + ((hex || binary) ? 2 : 0);
    bool is_floating = false;
    while (q < end && (isxdigit((unsigned char)*q) && (hex || isdigit((unsigned char)*q)))) ++q;
    if (!hex && !binary && q < end && *q == '.' && q + 1 < end && isdigit((unsigned char)q[1])) is_floating = true;
    if (!hex && !binary && q < end && (*q == 'e' || *q == 'E')) is_floating = true;
    if (is_floating) {
      char* stop = nullptr;
      double value = strtod(p, &stop);
      token.kind = TokenKind::Float;
      token.float_bytes = 8;
      memcpy(&token.bits, &value, 8);
      p = stop;
    } else {
      token.kind = TokenKind::Integer;
      std::string digits(p + (binary ? 2 : 0), q);
      bool octal = !hex && !binary && digits.size() > 1 && digits[0] == '0';
      token.bits = strtoull(digits.c_str(), nullptr, hex ? 16 : binary ? 2 : octal ? 8 : 10);
      p = q;
      if (p < end && (*p == 'U' || *p == 'u')) ++p;
    }
  }
  token.text = std::string_view(start, p - start);
  return token;
}

}  // namespace

std::vector<Token> tokenize(const std::string& source) {
  std::vector<Token> tokens;
  tokens.reserve(source.size() / 4);
  const char* p = source.data();
  const char* end = p + source.size();
  uint32_t line = 1;
  while (p < end) {
    char c = *p;
    if (c == '\n') {
      ++line;
      ++p;
      continue;
    }
    if (isspace((unsigned char)c) || c == '\0') {
      ++p;
      continue;
    }
    if (c == '/' && p + 1 < end && p[1] == '/') {
      while (p < end && *p != '\n') ++p;
      continue;
    }
    if (c == '/' && p + 1 < end && p[1] == '*') {
      p += 2;
      while (p + 1 < end && !(p[0] == '*' && p[1] == '/')) {
        if (*p == '\n') ++line;
        ++p;
      }
      p += 2;
      continue;
    }
    Token token;
    token.line = line;
    if (c == '"') {
      const char* q = p + 1;
      while (q < end && *q != '"') {
        if (*q == '\\') ++q;
        ++q;
      }
      token.kind = TokenKind::String;
      token.text = std::string_view(p + 1, q - p - 1);
      p = q + 1;
    } else if (is_word_start(c)) {
      const char* q = word_end(p + 1, end);
      token.kind = TokenKind::Word;
      token.text = std::string_view(p, q - p);
      p = q;
    } else if (c == '.' && p + 1 < end && is_word_char(p[1])) {
      const char* q = p + 1;
      while (q < end && is_word_char(*q)) ++q;
      token.kind = TokenKind::Directive;
      token.text = std::string_view(p, q - p);
      p = q;
    } else if (isdigit((unsigned char)c)) {
      token = lex_number(p, end, line);
    } else {
      token.kind = TokenKind::Punct;
      token.text = std::string_view(p, 1);
      ++p;
    }
    tokens.push_back(token);
  }
  Token last;
  last.line = line;
  tokens.push_back(last);
  return tokens;
}

}  // namespace hunyuan_kernels::simulator
