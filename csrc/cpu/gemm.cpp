#include "cpu/gemm.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>

#include "common/check.h"
#include "common/integer_math.h"

namespace hunyuan_kernels::cpu {
namespace {

constexpr int64_t kBlockSteps =
    kGemmMaxScaleBlock;                // steps of a k block: 32 KiB of b with kPanelColumns, next to 12 KiB of a in L1
constexpr int64_t kPanelColumns = 32;  // widest panel of any instruction set
constexpr int64_t kBlockRows = kGemmBlockRows;  // 48 KiB of sums with 32 columns
constexpr int64_t kMaxChunkRows = 16;           // of one tile
constexpr int64_t kTaskWork = 1 << 19;  // multiply-adds of a range of tasks: about 10 us, worth waking a thread for
// With few rows, tiles of this many bytes of weights are a range: what a thread prefetches is what it comes to next.
constexpr int64_t kRangeBytes = 1 << 20, kRangeWork = 1 << 24;
constexpr int64_t kRangesPerThread = 4;  // at least, where there are that many tiles
// Blocks of at least so many rows go to threads as a whole, in so many tasks for each thread if there are enough.
constexpr int64_t kWholeRows = 96, kWholesPerThread = 16;
constexpr int64_t kPackingWork = 8;  // packing an element costs about as much as this many multiply-adds

static_assert(kMaxPackedPanels * kPackedColumns == kGemmMaxColumns, "a tile's panels come in one call");

// A buffer that is kept between calls by the thread that owns it, aligned to cache lines.
class Buffer {
 public:
  template <typename T>
  T* reserve(int64_t count) {
    int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    if (bytes > bytes_) {
      release();  // before the allocation: both do not have to fit, and it may throw
      memory_.reset(static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{64})));
      bytes_ = bytes;
    }
    return reinterpret_cast<T*>(memory_.get());
  }
  void release() {
    memory_.reset();
    bytes_ = 0;
  }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t bytes_ = 0;
};

// Up to kBlockRows rows of one group, cut into chunks of at most one tile of rows, as even as they go.
struct RowBlock {
  int64_t group, row, rows, chunks;
  bool dot;        // done by dot products
  int64_t packed;  // where it starts in the slab: for each k block, the panels of all chunks, or (dot) all chunks

  int64_t chunk_row(int64_t chunk) const { return chunk * (rows / chunks) + std::min(chunk, rows % chunks); }
  int64_t chunk_rows(int64_t chunk) const { return rows / chunks + (chunk < rows % chunks); }
};

// What a thread needs for one tile, kept between calls: 150 KiB.
struct alignas(64) Scratch {
  uint32_t panel[kBlockSteps * kPanelColumns + kGemmPanelSlack];
  float sums[kBlockRows * kGemmMaxColumns];
  float row_scales[kBlockRows];
  float column_scales[kGemmMaxColumns];
};

// One call of gemm(): what the tasks share.
class Run {
 public:
  Run(const GemmScheme& scheme, const ThreadPool& pool, const GemmProblem& problem, const GemmEpilogue& epilogue);
  void all_groups();

 private:
  void slab();
  void pack_chunk(const RowBlock& block, int64_t chunk) const;
  void pack_dot_chunk(const RowBlock& block, int64_t chunk) const;
  void tile(const RowBlock& block, int64_t panel, bool more) const;
  void panel_tile(const RowBlock& block, int64_t column, int64_t columns, Scratch& scratch) const;
  void packed_sums(const RowBlock& block, int64_t column, int64_t columns, bool more, Scratch& scratch) const;
  void dot_sums(const RowBlock& block, int64_t column, int64_t columns, bool more, Scratch& scratch) const;
  void pack_columns(const GemmGroup& group, int64_t column, int64_t columns, int64_t k, uint32_t* panel) const;

  // Line of `a` that a row of a group is.
  static int64_t line_of(const GemmGroup& group, int64_t row) { return group.a_lines ? group.a_lines[row] : row; }
  const void* element(const GemmOperand& operand, const void* data, int64_t line, int64_t k) const {
    return static_cast<const char*>(data) +
           (line * operand.line_stride + k * operand.k_stride) * element_size(operand.dtype);
  }
  int64_t k_blocks(int64_t depth) const { return ceil_div(depth, k_block_); }
  int64_t steps(int64_t depth) const { return ceil_div(depth, scheme_.k_step); }
  // What is packed next to columns `column` and k: the next k block, or the next tile, which this task or one of the
  // next ones does. Null at the end.
  const void* next_lines(const GemmGroup& group, int64_t column, int64_t k) const;
  GemmPrefetch next_block(const GemmGroup& group, int64_t column, int64_t k) const;
  // Words of a row for dot products.
  int64_t dot_words(int64_t depth) const { return steps(round_up(depth, dot_.k_unit)); }
  // Words of the packed block, and where the panel of a chunk and a k block starts.
  int64_t block_words(int64_t rows, int64_t chunks, int64_t depth) const {
    return steps(depth) * rows + k_blocks(depth) * chunks * kGemmPanelSlack;
  }
  int64_t panel_offset(const RowBlock& block, int64_t chunk, int64_t k, int64_t depth) const {
    return block_words(block.rows, block.chunks, k) + block.chunk_row(chunk) * steps(depth) + chunk * kGemmPanelSlack;
  }

  const GemmScheme& scheme_;
  const ThreadPool& pool_;
  const GemmProblem& problem_;
  const GemmEpilogue& epilogue_;
  const GemmPack pack_a_, pack_b_;
  const GemmPacked packed_;     // multiply is nullptr: b is not packed
  const bool paired_;           // b has two halves
  const int width_;             // of a tile's sums
  const int64_t tile_columns_;  // columns of a tile (of each half)
  const int64_t panels_;        // tiles that cover the columns
  const int64_t k_block_;       // elements
  const GemmDot dot_;           // multiply is nullptr: not for these operands
  std::vector<RowBlock> blocks_;
  int64_t slab_words_ = 0;
  uint32_t* slab_ = nullptr;
};

const GemmScheme& choose_scheme(const GemmKernels& kernels, const GemmProblem& problem) {
  const GemmScheme& pairs = kernels.pairs;
  const bool fits = pairs.rows && pairs.packer(problem.a.dtype, true) &&
                    (problem.b.packed ? pairs.packed(problem.b.dtype).multiply != nullptr
                                      : pairs.packer(problem.b.dtype, true) != nullptr);
  return fits ? pairs : kernels.floats;
}

Run::Run(const GemmScheme& scheme, const ThreadPool& pool, const GemmProblem& problem, const GemmEpilogue& epilogue)
    : scheme_(scheme),
      pool_(pool),
      problem_(problem),
      epilogue_(epilogue),
      pack_a_(scheme.packer(problem.a.dtype, problem.a.along_k())),
      pack_b_(scheme.packer(problem.b.dtype, problem.b.along_k())),
      packed_(problem.b.packed ? scheme.packed(problem.b.dtype) : GemmPacked{}),
      paired_(problem.second_half != 0),
      width_(packed_.multiply ? static_cast<int>(kGemmMaxColumns) : scheme.columns),
      tile_columns_(paired_ ? width_ / 2 : width_),
      panels_(ceil_div(problem.columns, tile_columns_)),
      k_block_(problem.block_scales ? problem.scale_block : kBlockSteps * scheme.k_step),
      dot_(problem.b.along_k() && !problem.b.packed ? scheme.dot(problem.a.dtype, problem.b.dtype) : GemmDot{}) {
  check(pack_a_ && (problem.b.packed ? packed_.multiply != nullptr : pack_b_ != nullptr), "gemm", "operands",
        "have an element type without a packer");
}

// Row blocks in slabs. Groups with much work first, so that no thread starts a large one when the others are done.
void Run::all_groups() {
  thread_local Buffer buffer;
  std::vector<int64_t> order(problem_.groups.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
    const GemmGroup &gx = problem_.groups[x], &gy = problem_.groups[y];
    return gx.rows * gx.depth > gy.rows * gy.depth;
  });
  const int64_t slab_limit = kGemmSlabBytes / 4;
  auto flush = [&] {
    slab_ = buffer.reserve<uint32_t>(slab_words_);
    slab();
    blocks_.clear();
    slab_words_ = 0;
  };
  for (int64_t index : order) {
    const GemmGroup& group = problem_.groups[index];
    // A line that is longer than the slab makes it grow: at least one tile of rows has to fit.
    int64_t block_rows = slab_limit / (steps(group.depth) + 1) / scheme_.rows * scheme_.rows;
    block_rows = std::clamp(block_rows, int64_t{scheme_.rows}, kBlockRows);
    int64_t blocks = ceil_div(group.rows, block_rows);
    const bool dot = dot_.multiply && group.rows <= scheme_.dot_rows &&
                     (!problem_.block_scales || problem_.scale_block % dot_.k_unit == 0);
    for (int64_t i = 0, row = 0; i < blocks; ++i) {
      int64_t rows = group.rows / blocks + (i < group.rows % blocks), chunks = 1;
      if (dot)
        chunks = ceil_div(rows, dot_.rows);
      else if (!packed_.multiply || rows > scheme_.packed_rows)
        chunks = ceil_div(rows, scheme_.rows);
      int64_t words = dot ? dot_words(group.depth) * rows : block_words(rows, chunks, group.depth);
      if (!blocks_.empty() && slab_words_ + words > slab_limit) flush();
      blocks_.push_back({index, row, rows, chunks, dot, slab_words_});
      slab_words_ += round_up(words, 16);
      row += rows;
    }
  }
  if (!blocks_.empty()) flush();
  if (buffer.bytes() > kGemmSlabBytes) buffer.release();
}

void Run::slab() {
  std::vector<std::pair<const RowBlock*, int64_t>> chunks;
  int64_t words = 0, work = 0, bytes = 0;
  for (const RowBlock& block : blocks_) {
    int64_t depth = problem_.groups[block.group].depth;
    for (int64_t chunk = 0; depth && chunk < block.chunks; ++chunk) chunks.emplace_back(&block, chunk);
    words += block.rows * depth;
    work += (block.rows + kPackingWork) * depth * width_;
    bytes += depth * width_ * element_size(problem_.b.dtype);
  }
  // Ranges of tasks with enough work each; with little work in all, one range, which runs on this thread.
  auto grain = [](int64_t count, int64_t total) { return ceil_div(count, std::max<int64_t>(1, total / kTaskWork)); };
  const auto chunk_count = static_cast<int64_t>(chunks.size());
  parallel_ranges(pool_, chunk_count, grain(chunk_count, words * kPackingWork), [&](int64_t begin, int64_t end, int) {
    for (; begin < end; ++begin) {
      const auto& [block, chunk] = chunks[begin];
      block->dot ? pack_dot_chunk(*block, chunk) : pack_chunk(*block, chunk);
    }
  });
  const int64_t tiles = static_cast<int64_t>(blocks_.size()) * panels_;
  const auto blocks = static_cast<int64_t>(blocks_.size());
  const int64_t side_by_side =
      std::min({kRangeBytes * blocks / std::max<int64_t>(bytes, 1), kRangeWork * blocks / std::max<int64_t>(work, 1),
                tiles / (kRangesPerThread * pool_.size())});
  const int64_t range = std::max(grain(tiles, work * panels_), side_by_side);
  // Many rows: some whole blocks at a time, with tiles left to even out the end. Threads that come to the same huge
  // page of new memory would each clear it.
  const int64_t few = std::max<int64_t>(1, blocks / (kWholesPerThread * pool_.size())), whole = few * panels_;
  const int64_t large =
      std::count_if(blocks_.begin(), blocks_.end(), [](const RowBlock& block) { return block.rows >= kWholeRows; });
  const int64_t wholes =
      whole > range ? std::max<int64_t>(0, std::min(large, blocks - few * pool_.size())) / few : int64_t{0};
  parallel_tasks(pool_, wholes + ceil_div(tiles - wholes * whole, range), [&](int64_t task, int) {
    const bool is_whole = task < wholes;
    const int64_t begin = is_whole ? task * whole : wholes * whole + (task - wholes) * range;
    const int64_t end = std::min(begin + (is_whole ? whole : range), tiles);
    for (int64_t i = begin; i < end; ++i)
      tile(blocks_[i / panels_], i % panels_, i + 1 < end && (i + 1) % panels_ != 0);
  });
}

void Run::pack_chunk(const RowBlock& block, int64_t chunk) const {
  const GemmGroup& group = problem_.groups[block.group];
  const int64_t row = block.row + block.chunk_row(chunk);
  const int rows = static_cast<int>(block.chunk_rows(chunk));
  alignas(64) char gathered[kMaxChunkRows * kBlockSteps * sizeof(float)];  // a k block of rows that lie anywhere
  for (int64_t k = 0; k < group.depth; k += k_block_) {
    const int64_t depth = std::min(k_block_, group.depth - k), bytes = depth * element_size(problem_.a.dtype);
    const void* lines = element(problem_.a, group.a, row, k);
    int64_t stride = problem_.a.other_stride(), available = group.rows - row;
    if (group.a_lines) {
      for (int i = 0; i < rows; ++i)
        std::memcpy(gathered + i * bytes, element(problem_.a, group.a, line_of(group, row + i), k), bytes);
      lines = gathered, stride = depth, available = rows;
    }
    pack_a_(lines, stride, available, rows, depth, rows, slab_ + block.packed + panel_offset(block, chunk, k, depth));
  }
}

void Run::pack_dot_chunk(const RowBlock& block, int64_t chunk) const {
  const GemmGroup& group = problem_.groups[block.group];
  const int64_t row = block.chunk_row(chunk);
  const auto rows = static_cast<int>(block.chunk_rows(chunk));
  const void* lines[kMaxChunkRows];
  for (int i = 0; i < rows; ++i) lines[i] = element(problem_.a, group.a, line_of(group, block.row + row + i), 0);
  dot_.pack_rows(lines, problem_.a.k_stride, rows, group.depth, slab_ + block.packed + row * dot_words(group.depth));
}

const void* Run::next_lines(const GemmGroup& group, int64_t column, int64_t k) const {
  k += k_block_;
  if (k >= group.depth) column += tile_columns_, k = 0;
  if (column + tile_columns_ > problem_.columns) return nullptr;
  return element(problem_.b, group.b, column, k);
}

GemmPrefetch Run::next_block(const GemmGroup& group, int64_t column, int64_t k) const {
  const GemmOperand& b = problem_.b;
  const int64_t size = element_size(b.dtype), half = scheme_.columns / 2;
  const int64_t second = (paired_ ? problem_.second_half : half) * b.line_stride * size;
  const auto* first = static_cast<const char*>(next_lines(group, column, k));
  const int64_t depth = std::min(k_block_, group.depth - (k + k_block_ < group.depth ? k + k_block_ : 0));
  if (!first) return {};
  if (b.along_k()) return {first, b.line_stride * size, half, second, ceil_div(depth * size, 64)};
  return {first, b.k_stride * size, depth, second, ceil_div(half * size, 64)};
}

void Run::pack_columns(const GemmGroup& group, int64_t column, int64_t columns, int64_t k, uint32_t* panel) const {
  for (int half = 0; half < (paired_ ? 2 : 1); ++half) {
    const int64_t line = half * problem_.second_half;
    pack_b_(element(problem_.b, group.b, line + column, k), problem_.b.other_stride(), problem_.columns - column,
            static_cast<int>(columns), std::min(k_block_, group.depth - k), scheme_.columns,
            panel + half * tile_columns_);
  }
}

void Run::panel_tile(const RowBlock& block, int64_t column, int64_t columns, Scratch& scratch) const {
  const GemmBlockScales* scales = problem_.block_scales;
  const GemmGroup& group = problem_.groups[block.group];
  const bool one_block = group.depth <= k_block_;  // its sums stay in L1
  for (int64_t k = 0; k < group.depth; k += k_block_) {
    const int64_t depth = std::min(k_block_, group.depth - k);
    pack_columns(group, column, columns, k, scratch.panel);
    if (scales) {
      scales->rows(block.group, block.row, block.rows, k / k_block_, scratch.row_scales);
      scales->columns(block.group, column, columns, scheme_.columns, k / k_block_, scratch.column_scales);
    }
    const GemmPrefetch next = next_block(group, column, k);
    for (int64_t chunk = 0; chunk < block.chunks; ++chunk) {
      const int64_t row = block.chunk_row(chunk);
      const int64_t rows = block.chunk_rows(chunk);
      float* sums = scratch.sums + (one_block ? 0 : row * width_);
      scheme_.multiply(slab_ + block.packed + panel_offset(block, chunk, k, depth), scratch.panel, steps(depth),
                       static_cast<int>(rows), sums, width_, k != 0, scales ? scratch.row_scales + row : nullptr,
                       scratch.column_scales, chunk == 0 && next.first ? &next : nullptr);
      // Stored from L1, and while the next chunk is multiplied: the lines of the result lie far apart.
      if (k + depth == group.depth) epilogue_({block.group, block.row + row, rows, column, columns, width_, sums});
    }
  }
}

void Run::packed_sums(const RowBlock& block, int64_t column, int64_t columns, bool more, Scratch& scratch) const {
  const GemmBlockScales* scales = problem_.block_scales;
  const GemmGroup& group = problem_.groups[block.group];
  const int64_t panel_bytes = group.depth / packed_.depth * packed_.bytes;
  // Some columns at a time run through all of k: with few rows all of the tile's.
  const bool one_pass = block.chunks == 1, expand = block.rows > packed_.rows_to_expand;
  int64_t together = columns == tile_columns_ ? width_ : tile_columns_;
  if (!one_pass) together = std::min<int64_t>(tile_columns_, std::max(kPackedColumns, scheme_.columns));
  for (int64_t first = 0; first < width_; first += together) {
    PackedPanels b, start;
    // Panels that have columns. Those of a half that is cut short come alone.
    for (int64_t at = first; at < first + together; at += kPackedColumns) {
      const int64_t half = at / tile_columns_, inside = at % tile_columns_;
      if (inside >= columns) break;
      const int64_t panel = (half * problem_.second_half + column + inside) / kPackedColumns;
      start.first[start.count++] = static_cast<const char*>(group.b) + panel * panel_bytes;
    }
    if (!start.count) continue;
    b.count = start.count;
    const int64_t to_next = one_pass ? more * tile_columns_ / kPackedColumns * panel_bytes : b.count * panel_bytes;
    for (int64_t k = 0; k < group.depth; k += k_block_) {
      const int64_t depth = std::min(k_block_, group.depth - k), blocks = depth / packed_.depth;
      const int64_t bytes = blocks * packed_.bytes;
      const bool last = k + depth == group.depth;
      if (scales) {
        scales->rows(block.group, block.row, block.rows, k / k_block_, scratch.row_scales);
        scales->columns(block.group, column, columns, width_, k / k_block_, scratch.column_scales);
      }
      // The next k block; at the end the next panels, or for want of such what is in L2.
      for (int i = 0; i < b.count; ++i) {
        b.first[i] = start.first[i] + k / packed_.depth * packed_.bytes;
        b.next[i] = last ? start.first[i] + to_next : b.first[i] + bytes;
      }
      const int64_t after = std::min(k_block_, last ? group.depth : group.depth - k - depth);
      const GemmPrefetch prefetch = {b.next[0], kPackedLine, after / packed_.depth * packed_.bytes / kPackedLine,
                                     panel_bytes, 1};
      if (expand) packed_.expand(b, blocks, scratch.panel);
      for (int64_t chunk = 0; chunk < block.chunks; ++chunk) {
        const int64_t row = block.chunk_row(chunk);
        const uint32_t* a = slab_ + block.packed + panel_offset(block, chunk, k, depth);
        const auto rows = static_cast<int>(block.chunk_rows(chunk));
        float* sums = scratch.sums + row * width_ + first;
        const float *row_scales = scales ? scratch.row_scales + row : nullptr,
                    *column_scales = scratch.column_scales + first;
        b.prefetch = one_pass ? kPackedPrefetch : chunk == 0 ? bytes : 0;
        if (expand)
          scheme_.multiply(a, scratch.panel, steps(depth), rows, sums, width_, k != 0, row_scales, column_scales,
                           chunk == 0 ? &prefetch : nullptr);
        else
          packed_.multiply(a, rows, b, blocks, sums, width_, k != 0, row_scales, column_scales);
      }
    }
  }
}

void Run::dot_sums(const RowBlock& block, int64_t column, int64_t columns, bool more, Scratch& scratch) const {
  thread_local Buffer buffer;
  const GemmGroup& group = problem_.groups[block.group];
  GemmDotScales scales;
  if (problem_.block_scales) {
    const int64_t blocks = ceil_div(group.depth, problem_.scale_block);
    float *of_rows = buffer.reserve<float>(blocks * (block.rows + width_) + kGemmDotPadding),
          *of_columns = of_rows + blocks * block.rows;
    scales = {problem_.scale_block, of_rows, of_columns, block.rows, width_};
    for (int64_t i = 0; i < blocks; ++i, of_rows += block.rows, of_columns += width_) {
      problem_.block_scales->rows(block.group, block.row, block.rows, i, of_rows);
      problem_.block_scales->columns(block.group, column, columns, width_, i, of_columns);
    }
  }
  // Several chunks of rows run over the same columns while these are in L2.
  const int64_t together = block.chunks == 1 ? tile_columns_ : dot_.columns;
  const auto line = [&](int64_t index) { return element(problem_.b, group.b, index, 0); };
  for (int half = 0; half < (paired_ ? 2 : 1); ++half)
    for (int64_t first = 0; first < columns; first += together) {
      const int64_t at = half * problem_.second_half + column + first, in_tile = half * tile_columns_ + first;
      const void* next = nullptr;  // where the weights go on, unless another thread is there
      if (first + together < columns)
        next = line(at + together);
      else if (paired_ && half == 0)
        next = line(problem_.second_half + column);
      else if (more)
        next = line(column + tile_columns_);
      for (int64_t chunk = 0; chunk < block.chunks; ++chunk) {
        const int64_t row = block.chunk_row(chunk);
        GemmDotScales of_chunk = scales;
        if (scales.block) of_chunk.rows += row, of_chunk.columns += in_tile;
        dot_.multiply(slab_ + block.packed + row * dot_words(group.depth), static_cast<int>(block.chunk_rows(chunk)),
                      line(at), problem_.b.line_stride, static_cast<int>(std::min(together, columns - first)),
                      group.depth, scratch.sums + row * width_ + in_tile, width_, of_chunk,
                      chunk == 0 ? next : nullptr);
      }
    }
}

void Run::tile(const RowBlock& block, int64_t panel, bool more) const {
  thread_local const auto scratch = std::make_unique<Scratch>();
  const int64_t column = panel * tile_columns_, columns = std::min(tile_columns_, problem_.columns - column);
  if (problem_.groups[block.group].depth == 0)
    std::fill_n(scratch->sums, block.rows * width_, 0.0f);
  else if (packed_.multiply)
    packed_sums(block, column, columns, more, *scratch);
  else if (block.dot)
    dot_sums(block, column, columns, more, *scratch);
  else
    return panel_tile(block, column, columns, *scratch);
  epilogue_({block.group, block.row, block.rows, column, columns, width_, scratch->sums});
}

}  // namespace

void gemm(const Microkernels& microkernels, const ThreadPool& pool, const GemmProblem& problem,
          const GemmEpilogue& epilogue) {
  if (problem.columns == 0) return;
  Run(choose_scheme(microkernels.gemm, problem), pool, problem, epilogue).all_groups();
}

}  // namespace hunyuan_kernels::cpu
