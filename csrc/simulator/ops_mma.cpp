// mma.sync m16n8k_k.
#include "simulator/decode.h"
#include "simulator/matrix.h"

namespace hunyuan_kernels::simulator {
namespace {

// imm[0]: k; type: A, type2: accumulator; imm[1]: B type; flags: 1 satfinite, 2 C is f16, 4 D is f16
template <typename T>
void multiply(Warp& warp, const Instr& instr) {
  const uint32_t k = (uint32_t)instr.imm[0];
  const ScalarType b_type = (ScalarType)instr.imm[1];
  T a[16 * 32], b[32 * 8];
  uint32_t registers[4 * 32];
  const size_t a_count = instr.imm[2] & 0xff, b_count = instr.imm[2] >> 8;
  for (size_t i = 0; i < a_count; ++i) memcpy(&registers[i * 32], warp.ptr<uint32_t>(instr.list[i]), 128);
  decode_a_fragment(registers, instr.type, k, a);
  const uint32_t per = 4 / size_of(b_type);
  for (size_t i = 0; i < b_count; ++i) {
    const uint32_t* r = warp.ptr<uint32_t>(instr.list[a_count + i]);
    for (uint32_t lane = 0; lane < 32; ++lane) {
      T v[4];
      decode_elements((const uint8_t*)&r[lane], per, b_type, v);
      for (uint32_t e = 0; e < per; ++e) b[(i * 4 * per + (lane % 4) * per + e) * 8 + lane / 4] = v[e];
    }
  }
  T acc[16 * 8];
  const Operand* c = &instr.list[a_count + b_count];
  for (int v = 0; v < 4; ++v)
    for (int lane = 0; lane < 32; ++lane) {
      T value;
      if (instr.flags & 2)
        value = (T)half_to_float(warp.ptr<uint16_t>(c[v / 2])[2 * lane + (v & 1)]);
      else
        value = warp.ptr<T>(c[v])[lane];
      acc[(lane / 4 + 8 * (v >> 1)) * 8 + (lane % 4) * 2 + (v & 1)] = value;
    }
  for (int r = 0; r < 16; ++r)
    for (uint32_t i = 0; i < k; ++i)
      for (int n = 0; n < 8; ++n) acc[r * 8 + n] += a[r * k + i] * b[i * 8 + n];
  for (int v = 0; v < 4; ++v)
    for (int lane = 0; lane < 32; ++lane) {
      T value = acc[(lane / 4 + 8 * (v >> 1)) * 8 + (lane % 4) * 2 + (v & 1)];
      if (instr.flags & 4)
        warp.ptr<uint16_t>(instr.list2[v / 2])[2 * lane + (v & 1)] = float_to_half((float)value);
      else
        warp.ptr<T>(instr.list2[v])[lane] = value;
    }
}

ExecStatus exec_mma(Warp& warp, const Instr& instr, uint32_t mask) {
  if (!warp.converged(kFullMask)) return ExecStatus::Blocked;
  if (mask != kFullMask) warp.fail(instr, -1, "mma.sync needs all 32 lanes");
  if (instr.type2 == ScalarType::S32)
    multiply<int32_t>(warp, instr);
  else
    multiply<float>(warp, instr);
  std::string& name = warp.launch->scratch_name;
  name = instr.ast->opcode;
  ++warp.launch->counters.mma_count[name];
  warp.launch->counters.mma_flops[name] += 2ull * 16 * 8 * (uint64_t)instr.imm[0];
  return ExecStatus::Next;
}

void decode_mma(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.cls = InstrClass::Mma;
  if (!a.has("sync") || a.has("sp") || !a.has("row") || !a.has("col")) c.unsupported();
  int m = 0, n = 0, k = 0;
  for (auto p : a.parts)
    if (p.size() > 3 && p[0] == 'm' && isdigit((unsigned char)p[1]))
      sscanf(std::string(p).c_str(), "m%dn%dk%d", &m, &n, &k);
  if (m != 16 || n != 8 || k > 32) c.unsupported("shape");
  instr.imm[0] = k;
  ScalarType d = type_part(a, 0), c_type = type_part(a, 3);
  instr.type2 = d;
  instr.type = type_part(a, 1);
  instr.imm[1] = (int64_t)type_part(a, 2);
  uint32_t element_bytes = size_of(instr.type);
  if (instr.type == ScalarType::F64 || (int)(k * element_bytes) > 32) c.unsupported("type");
  if (a.has("satfinite") && d == ScalarType::S32) c.unsupported("satfinite");
  if (c_type == ScalarType::F16) instr.flags |= 2;
  if (d == ScalarType::F16) {
    instr.flags |= 4;
    instr.type2 = ScalarType::F32;
  }
  if (k * element_bytes < 16 || size_of((ScalarType)instr.imm[1]) != element_bytes) c.unsupported("type");
  auto elements = [](const OperandAst& o) {
    return o.kind == OperandAst::Kind::Vector ? o.elements : std::vector<OperandAst>{o};
  };
  auto collect = [&](size_t operand, size_t count, std::vector<Operand>& list) {
    const auto all = elements(a.operands[operand]);
    if (all.size() != count) c.unsupported("register count");
    for (auto& e : all) list.push_back(operand == 0 ? c.dest(e, 4) : c.source(e, 4));
  };
  const size_t a_count = k * element_bytes / 8, b_count = k * element_bytes / 16;
  collect(1, a_count, instr.list);
  collect(2, b_count, instr.list);
  collect(3, (instr.flags & 2) ? 2 : 4, instr.list);
  collect(0, (instr.flags & 4) ? 2 : 4, instr.list2);
  instr.imm[2] = (int64_t)(a_count | (b_count << 8));
  instr.fn = &exec_mma;
}

}  // namespace

void register_mma_ops(OpTable& t) { t["mma"] = &decode_mma; }

}  // namespace hunyuan_kernels::simulator
