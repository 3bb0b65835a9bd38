// How CPU kernels use threads. The framework that hosts us provides the pool (bindings/torch_glue.h: torch's own);
// kernels only say what has to be done.
#pragma once
#include <atomic>
#include <cstdint>

namespace hunyuan_kernels {

class ThreadPool {
 public:
  virtual ~ThreadPool() = default;
  // Number of threads that run() may use, at least 1.
  virtual int size() const = 0;
  // Calls body(context, thread) once for each thread in [0, threads), possibly one after another on one thread (a
  // nested call): a body must never wait for another one.
  virtual void run(int threads, void (*body)(void* context, int thread), void* context) const = 0;
};

// body(task, thread) for every task of [0, tasks). Tasks are handed out one by one, in order, from a common counter: a
// slow core takes fewer. thread < pool.size() names a scratch slot.
template <typename Body>
void parallel_tasks(const ThreadPool& pool, int64_t tasks, Body&& body) {
  int threads = static_cast<int>(tasks < pool.size() ? tasks : pool.size());
  if (threads <= 0) return;
  struct Shared {
    Body& body;
    int64_t tasks;
    std::atomic<int64_t> next{0};
  } shared{body, tasks, {}};
  pool.run(
      threads,
      [](void* context, int thread) {
        auto& s = *static_cast<Shared*>(context);
        for (int64_t task; (task = s.next.fetch_add(1, std::memory_order_relaxed)) < s.tasks;) s.body(task, thread);
      },
      &shared);
}

// body(begin, end, thread) over [0, count) in chunks of `grain`, handed out dynamically.
template <typename Body>
void parallel_ranges(const ThreadPool& pool, int64_t count, int64_t grain, Body&& body) {
  if (count <= 0) return;
  parallel_tasks(pool, (count + grain - 1) / grain, [&](int64_t task, int thread) {
    int64_t begin = task * grain, end = begin + grain < count ? begin + grain : count;
    body(begin, end, thread);
  });
}

}  // namespace hunyuan_kernels
