// Recursive-descent parser for the PTX that nvcc emits.
#include <cstring>

#include "simulator/ast.h"
#include "simulator/error.h"
#include "simulator/lexer.h"

namespace hunyuan_kernels::simulator {

namespace {

constexpr uint32_t kMaxRegisters = 1u << 20;

class Parser {
 public:
  explicit Parser(const std::string& source) : tokens_(tokenize(source)) {}

  ModuleAst parse() {
    while (peek().kind != TokenKind::End) parse_top_level();
    return std::move(module_);
  }

 private:
  std::vector<Token> tokens_;
  size_t pos_ = 0;
  ModuleAst module_;

  const Token& peek(int ahead = 0) const { return tokens_[std::min(pos_ + ahead, tokens_.size() - 1)]; }
  const Token& next() {
    if (peek().kind == TokenKind::End) fail("unexpected end of the text");
    return tokens_[pos_++];
  }
  bool at(std::string_view text) const { return peek().text == text && peek().kind != TokenKind::String; }
  bool accept(std::string_view text) {
    if (at(text)) {
      next();
      return true;
    }
    return false;
  }
  [[noreturn]] void fail(const std::string& what) const {
    std::string near;  // the text is of bytes, a message of characters
    for (const unsigned char c : peek().text)
      near += c < 0x80 ? std::string(1, static_cast<char>(c)) : format("\\x%02x", c);
    throw SimError(format("PTX line %u: %s near '%s'", peek().line, what.c_str(), near.c_str()));
  }
  void expect(std::string_view text) {
    if (!accept(text)) fail("expected '" + std::string(text) + "'");
  }
  uint64_t integer() {
    bool negative = accept("-");
    if (peek().kind != TokenKind::Integer) fail("expected an integer");
    uint64_t v = next().bits;
    return negative ? -v : v;
  }

  void parse_top_level() {
    if (accept(".version")) {
      next();
      return;
    }
    if (accept(".target")) {
      module_.target = std::string(next().text);
      while (accept(",")) next();
      return;
    }
    if (accept(".address_size")) {
      integer();
      return;
    }
    if (at(".file") || at(".loc")) {
      skip_line();
      return;
    }
    if (at(".section")) {
      skip_braces();
      return;
    }
    if (accept(".pragma")) {
      while (!accept(";")) next();
      return;
    }
    if (accept(".alias")) {
      while (!accept(";")) next();
      return;
    }
    bool is_extern = false;
    while (at(".visible") || at(".weak") || at(".extern") || at(".common")) {
      if (at(".extern")) is_extern = true;
      next();
    }
    if (at(".entry") || at(".func")) {
      parse_function(is_extern);
      return;
    }
    if (at(".global") || at(".const") || at(".shared")) {
      for (auto& v : parse_variables(is_extern)) module_.variables.push_back(std::move(v));
      return;
    }
    fail("unsupported directive");
  }

  void skip_line() {
    uint32_t line = peek().line;
    while (peek().kind != TokenKind::End && peek().line == line) next();
  }
  void skip_braces() {
    while (!at("{")) next();
    int depth = 0;
    do {
      if (at("{")) ++depth;
      if (at("}")) --depth;
      next();
    } while (depth > 0);
  }

  static Space space_of(std::string_view t) {
    if (t == ".global") return Space::Global;
    if (t == ".const") return Space::Const;
    if (t == ".shared") return Space::Shared;
    if (t == ".local") return Space::Local;
    if (t == ".param") return Space::Param;
    return Space::None;
  }

  // One declarator list after a state-space directive, ends with ';' (not for parameters).
  std::vector<Variable> parse_variables(bool is_extern) {
    std::vector<Variable> out;
    Variable base = parse_variable_head();
    base.is_extern = is_extern;
    do {
      Variable v = base;
      parse_declarator(v);
      out.push_back(std::move(v));
    } while (accept(","));
    expect(";");
    return out;
  }

  Variable parse_variable_head() {
    Variable v;
    v.space = space_of(next().text);
    uint32_t vector_width = 1;
    while (peek().kind == TokenKind::Directive) {
      std::string_view t = next().text;
      if (t == ".align")
        v.align = (uint32_t)integer();
      else if (t == ".ptr") { /* pointer attribute of kernel parameters */
      } else if (t == ".attribute") {
        expect("(");
        while (!accept(")")) next();
      } else if (t == ".v2")
        vector_width = 2;
      else if (t == ".v4")
        vector_width = 4;
      else if (space_of(t) != Space::None) { /* .ptr .global */
      } else {
        v.type = parse_scalar_type(t.substr(1));
        if (v.type == ScalarType::None) fail("unknown type " + std::string(t));
      }
    }
    v.bytes = uint64_t(size_of(v.type)) * vector_width;
    v.align = std::max<uint32_t>(v.align, std::min<uint64_t>(v.bytes, 16));
    return v;
  }

  void parse_declarator(Variable& v) {
    v.name = std::string(next().text);
    if (accept("<")) {  // parameterized name outside .reg
      integer();
      expect(">");
    }
    uint64_t element_bytes = v.bytes, count = 1;
    bool unsized = false;
    while (accept("[")) {
      v.is_array = true;
      if (accept("]")) {
        unsized = true;
        continue;
      }
      count *= integer();
      expect("]");
    }
    if (accept("=")) parse_initializer(v, (uint32_t)element_bytes);
    v.bytes = unsized ? v.initial_bytes.size() : element_bytes * count;
    if (!v.initial_bytes.empty()) v.initial_bytes.resize(v.bytes);
  }

  void parse_initializer(Variable& v, uint32_t element_bytes) {
    if (accept("{")) {
      while (!accept("}")) {
        parse_initializer(v, element_bytes);
        accept(",");
      }
      return;
    }
    size_t at = v.initial_bytes.size();
    v.initial_bytes.resize(at + element_bytes);
    bool negative = accept("-");
    const Token& t = next();
    if (t.kind == TokenKind::Integer || t.kind == TokenKind::Float) {
      uint64_t bits = t.bits;
      if (t.kind == TokenKind::Float && t.float_bytes == 8 && element_bytes == 4) {
        double d;
        memcpy(&d, &bits, 8);
        float f = (float)d;
        bits = 0;
        memcpy(&bits, &f, 4);
      }
      if (negative) bits = t.kind == TokenKind::Integer ? -bits : bits ^ (1ull << (element_bytes * 8 - 1));
      memcpy(&v.initial_bytes[at], &bits, std::min<uint32_t>(8, element_bytes));
    } else if (t.text == "generic") {
      expect("(");
      std::string symbol(next().text);
      int64_t addend = accept("+") ? (int64_t)integer() : 0;
      expect(")");
      v.relocations.push_back({at, symbol, addend, element_bytes});
    } else {
      int64_t addend = accept("+") ? (int64_t)integer() : 0;
      v.relocations.push_back({at, std::string(t.text), addend, element_bytes});
    }
  }

  std::vector<Variable> parse_parameter_list() {
    std::vector<Variable> params;
    expect("(");
    while (!accept(")")) {
      if (at(".reg")) fail("register parameters are not supported");
      Variable v = parse_variable_head();
      parse_declarator(v);
      params.push_back(std::move(v));
      accept(",");
    }
    return params;
  }

  void parse_function(bool is_extern) {
    auto f = std::make_unique<FunctionAst>();
    f->line = peek().line;
    f->is_entry = next().text == ".entry";
    f->is_extern = is_extern;
    if (at(".attribute")) {
      next();
      expect("(");
      while (!accept(")")) next();
    }
    if (at("(")) f->results = parse_parameter_list();
    f->name = std::string(next().text);
    if (at("(")) f->params = parse_parameter_list();
    while (peek().kind == TokenKind::Directive) {
      std::string_view t = next().text;
      uint32_t values[3] = {1, 1, 1};
      int n = 0;
      while (peek().kind == TokenKind::Integer && n < 3) {
        values[n++] = (uint32_t)next().bits;
        if (!accept(",")) break;
      }
      if (t == ".maxntid") memcpy(f->max_threads, values, sizeof(values));
      if (t == ".reqntid") memcpy(f->required_threads, values, sizeof(values));
      if (t == ".reqnctapercluster") memcpy(f->required_cluster, values, sizeof(values));
      if (t == ".maxnreg") f->max_registers = values[0];
      if (t == ".pragma")
        while (!at("{") && !at(";")) next();
    }
    if (accept(";")) {
      f->is_extern = true;
    } else {
      f->is_extern = false;
      expect("{");
      parse_block(*f, -1);
    }
    module_.functions.push_back(std::move(f));
  }

  void parse_block(FunctionAst& f, int parent) {
    uint32_t scope = (uint32_t)f.scopes.size();
    f.scopes.emplace_back();
    f.scopes[scope].parent = parent;
    while (!accept("}")) {
      const Token& t = peek();
      if (t.kind == TokenKind::End) fail("unexpected end of the text");
      if (accept(";")) continue;
      if (accept("{")) {
        parse_block(f, (int)scope);
        continue;
      }
      if (t.kind == TokenKind::Directive) {
        parse_body_directive(f, scope);
        continue;
      }
      if (t.kind == TokenKind::Word && peek(1).text == ":") {
        std::string label(t.text);
        next();
        next();
        if (at(".branchtargets") || at(".calltargets")) {
          next();
          std::vector<std::string> targets;
          do targets.emplace_back(next().text);
          while (accept(","));
          expect(";");
          f.scopes[scope].branch_targets[label] = targets;
        } else if (at(".callprototype")) {
          while (!accept(";")) next();
        } else {
          f.scopes[scope].labels[label] = (uint32_t)f.instructions.size();
        }
        continue;
      }
      parse_instruction(f, scope);
    }
  }

  void parse_body_directive(FunctionAst& f, uint32_t scope) {
    if (accept(".reg")) {
      std::string_view t = next().text;
      ScalarType type = parse_scalar_type(t.substr(1));
      if (type == ScalarType::None) fail("unknown register type " + std::string(t));
      do {
        std::string name(next().text);
        if (accept("<")) {
          const uint64_t count = integer();
          if (count > kMaxRegisters)
            fail(format("%llu registers of one name, at most %u", (unsigned long long)count, kMaxRegisters));
          expect(">");
          for (uint64_t i = 0; i < count; ++i)
            f.scopes[scope].registers[name + std::to_string(i)] = {type, f.register_count++};
        } else {
          f.scopes[scope].registers[name] = {type, f.register_count++};
        }
      } while (accept(","));
      expect(";");
      return;
    }
    if (at(".loc") || at(".file")) {
      skip_line();
      return;
    }
    if (accept(".pragma")) {
      while (!accept(";")) next();
      return;
    }
    if (space_of(peek().text) != Space::None) {
      for (auto& v : parse_variables(false)) f.scopes[scope].variables[v.name] = std::move(v);
      return;
    }
    fail("unsupported directive in function body");
  }

  OperandAst parse_operand() {
    OperandAst o;
    if (accept("[")) {
      o.kind = OperandAst::Kind::Address;
      do {
        OperandAst e = parse_operand();
        if (o.elements.empty()) {
          o.offset = e.offset;
          e.offset = 0;
        }
        o.elements.push_back(std::move(e));
      } while (accept(","));
      expect("]");
      return o;
    }
    if (accept("{")) {
      o.kind = OperandAst::Kind::Vector;
      while (!accept("}")) {
        o.elements.push_back(parse_operand());
        accept(",");
      }
      return o;
    }
    if (accept("!")) {
      o = parse_operand();
      o.negated = true;
      return o;
    }
    bool negative = accept("-");
    const Token& v = next();
    if (v.kind == TokenKind::Integer) {
      o.kind = OperandAst::Kind::Integer;
      o.bits = negative ? -v.bits : v.bits;
      return o;
    }
    if (v.kind == TokenKind::Float) {
      o.kind = OperandAst::Kind::Float;
      o.bits = v.bits;
      o.float_bytes = v.float_bytes;
      if (negative) o.bits ^= 1ull << (v.float_bytes * 8 - 1);
      return o;
    }
    if (v.kind == TokenKind::String) {
      o.kind = OperandAst::Kind::String;
      o.name = std::string(v.text);
      return o;
    }
    if (v.kind != TokenKind::Word) {
      --pos_;
      fail("unexpected token in operand");
    }
    if (v.text == "_") {
      o.kind = OperandAst::Kind::Sink;
    } else
      o.name = std::string(v.text);
    if (accept("+"))
      o.offset = (int64_t)integer();
    else if (at("-") && peek(1).kind == TokenKind::Integer)
      o.offset = (int64_t)integer();
    if (accept("|")) {
      if (at("_")) {
        next();
        o.pair_name = "_";
      } else
        o.pair_name = std::string(next().text);
    }
    return o;
  }

  std::vector<OperandAst> parse_parenthesized() {
    std::vector<OperandAst> list;
    expect("(");
    while (!accept(")")) {
      list.push_back(parse_operand());
      accept(",");
    }
    return list;
  }

  void parse_instruction(FunctionAst& f, uint32_t scope) {
    InstrAst instr;
    instr.line = peek().line;
    instr.scope = scope;
    if (accept("@")) {
      instr.guard_negated = accept("!");
      instr.guard_name = std::string(next().text);
    }
    if (peek().kind != TokenKind::Word) fail("expected an opcode");
    instr.opcode = std::string(next().text);
    // Inline assembly sometimes puts blanks inside the opcode: "wgmma.x .y {"
    while (peek().kind == TokenKind::Directive) instr.opcode += std::string(next().text);
    if (instr.opcode.rfind("call", 0) == 0) {
      if (at("(")) {
        instr.call_results = parse_parenthesized();
        expect(",");
      }
      instr.operands.push_back(parse_operand());
      if (accept(",")) {
        if (at("("))
          instr.call_arguments = parse_parenthesized();
        else
          instr.operands.push_back(parse_operand());
        while (accept(",")) instr.operands.push_back(parse_operand());
      }
    } else {
      while (!at(";")) {
        instr.operands.push_back(parse_operand());
        if (!accept(",")) break;
      }
    }
    expect(";");
    f.instructions.push_back(std::move(instr));
  }
};

// Splits at single dots; "shared::cta" stays one part.
void split_opcode(InstrAst& instr) {
  std::string_view rest = instr.opcode;
  while (!rest.empty()) {
    size_t dot = rest.find('.');
    instr.parts.push_back(rest.substr(0, dot));
    if (dot == std::string_view::npos) break;
    rest.remove_prefix(dot + 1);
  }
}

}  // namespace

ModuleAst parse_module(const std::string& source) {
  ModuleAst module = Parser(source).parse();
  for (auto& f : module.functions)
    for (auto& instr : f->instructions) split_opcode(instr);
  return module;
}

}  // namespace hunyuan_kernels::simulator
