// Checked access to global, shared, local and parameter memory.
#pragma once
#include "simulator/machine.h"

namespace hunyuan_kernels::simulator {

enum class Access : uint8_t {
  Read,    // the value is used: it must have been written
  Follow,  // the value is copied: the caller hands undefined bytes on (definedness.h)
  Write,
  Update,  // reads and writes
};

// Host pointer of a checked access. Shared accesses update or test the shadow state.
uint8_t* global_pointer(Warp& warp, const Instr& instr, int lane, uint64_t address, uint32_t bytes, bool write);
// A range that an asynchronous operation touches.
void global_range(Warp& warp, const Instr& instr, int lane, uint64_t address, uint64_t bytes, bool write);
uint8_t* shared_pointer(Warp& warp, const Instr& instr, int lane, uint64_t address, uint32_t bytes, Access access,
                        bool cluster);
uint8_t* local_pointer(Warp& warp, const Instr& instr, int lane, uint64_t offset, uint32_t bytes);
uint8_t* param_pointer(Warp& warp, const Instr& instr, int lane, uint64_t offset, uint32_t bytes);
// Dispatches on the instruction's space; resolves generic addresses by window.
uint8_t* memory_pointer(Warp& warp, const Instr& instr, int lane, uint64_t address, uint32_t bytes, Access access,
                        Space* actual = nullptr);

// Block that owns a 32-bit shared address (its rank is in the upper bits); `offset` gets the low part.
Cta& shared_owner(Warp& warp, const Instr& instr, int lane, uint64_t address, bool cluster, uint32_t& offset);
// Same, for a range [offset, offset+bytes) that an asynchronous operation touches.
Cta& async_shared_range(Warp& warp, const Instr& instr, int lane, uint64_t address, uint64_t bytes, uint32_t& offset);

// Asynchronous-proxy bookkeeping on one block's shared memory.
void check_async_read(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset,
                      uint32_t bytes);  // fence + initialized
void add_async_reader(Cta& owner, uint32_t offset, uint32_t bytes, int delta);
void add_async_writer(Cta& owner, uint32_t offset, uint32_t bytes, int delta);
// Marks bytes as written by the async proxy and copies them in.
void async_write(Cta& owner, uint32_t offset, const uint8_t* data, uint32_t bytes);
// Error when an async write hits a tile that an unfinished operation still reads.
void check_async_overwrite(Warp& warp, const Instr& instr, int lane, Cta& owner, uint32_t offset, uint32_t bytes);

// Counts a warp-wide access of one space.
void count_access(Warp& warp, Space space, bool store, const uint64_t* addresses, uint32_t count, uint32_t bytes);

}  // namespace hunyuan_kernels::simulator
