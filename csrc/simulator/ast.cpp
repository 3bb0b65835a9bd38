// Readable text of parsed instructions, for messages.
#include "simulator/ast.h"

#include "simulator/error.h"

namespace hunyuan_kernels::simulator {

std::string InstrAst::text() const {
  std::string out;
  if (!guard_name.empty()) out += std::string("@") + (guard_negated ? "!" : "") + guard_name + " ";
  out += opcode;
  auto show = [](auto&& self, const OperandAst& o) -> std::string {
    using K = OperandAst::Kind;
    switch (o.kind) {
      case K::Sink: return "_";
      case K::Integer: return std::to_string((int64_t)o.bits);
      case K::Float: return format("0f%llx", (unsigned long long)o.bits);
      case K::String: return "\"" + o.name + "\"";
      case K::Name: {
        std::string s = (o.negated ? "!" : "") + o.name;
        if (o.offset) s += format("+%lld", (long long)o.offset);
        if (!o.pair_name.empty()) s += "|" + o.pair_name;
        return s;
      }
      case K::Address:
      case K::Vector: {
        std::string s = o.kind == K::Address ? "[" : "{";
        for (size_t i = 0; i < o.elements.size(); ++i) s += (i ? ", " : "") + self(self, o.elements[i]);
        if (o.kind == K::Address && o.offset) s += format("+%lld", (long long)o.offset);
        return s + (o.kind == K::Address ? "]" : "}");
      }
    }
    return "?";
  };
  for (size_t i = 0; i < operands.size(); ++i) out += (i ? ", " : " ") + show(show, operands[i]);
  if (out.size() > 300) out = out.substr(0, 300) + " ...";
  return out;
}

}  // namespace hunyuan_kernels::simulator
