// Division of work over XLA's pool of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__)
#include <immintrin.h>
inline void pause() { _mm_pause(); }
#else
inline void pause() {}
#endif

// A thread is given at least this many bytes to read: waking one takes about as long as reading them.
constexpr int64_t kLeastBytes = 96 << 10;

struct Shares {
  std::function<void(int64_t)> body;
  int64_t count;
  std::atomic<int64_t> next{0}, done{0};

  void work() {
    for (int64_t i; (i = next.fetch_add(1)) < count;) {
      body(i);
      done.fetch_add(1, std::memory_order_release);
    }
  }
};

// A thread that has done its shares waits here for the next ones for a short time: a product of one row takes 20 to 100 µs, and waking a
// thread of the pool up to 10 µs.
struct Desk {
  enum State { kEmpty, kWaiting, kTaken };
  std::atomic<int> state{kEmpty};
  std::shared_ptr<Shares> next;  // written before kTaken is set
};

constexpr int kDesks = 64;
constexpr int kWaits = 400;  // about 30 µs
static Desk desks[kDesks];  // of this library alone

// Gives shares to a waiting thread. Returns false if none waits.
inline bool hand_over(const std::shared_ptr<Shares>& shares) {
  for (Desk& desk : desks) {
    if (desk.state.load(std::memory_order_relaxed) != Desk::kWaiting) continue;
    int waiting = Desk::kWaiting;
    if (!desk.state.compare_exchange_strong(waiting, kDesks + Desk::kTaken)) continue;
    desk.next = shares;
    desk.state.store(Desk::kTaken, std::memory_order_release);
    return true;
  }
  return false;
}

// Works on shares, and on those that are handed over soon afterwards.
inline void work_and_wait(std::shared_ptr<Shares> shares) {
  while (shares) {
    shares->work();
    shares.reset();
    for (Desk& desk : desks) {
      int empty = Desk::kEmpty;
      if (!desk.state.compare_exchange_strong(empty, Desk::kWaiting)) continue;
      for (int i = 0; i < kWaits && desk.state.load(std::memory_order_acquire) == Desk::kWaiting; ++i) {
        for (int j = 0; j < 8; ++j) pause();
        // Other threads of this core come first.
        if (i % 16 == 15) std::this_thread::yield();
      }
      int waiting = Desk::kWaiting;
      if (!desk.state.compare_exchange_strong(waiting, Desk::kEmpty)) {
        while (desk.state.load(std::memory_order_acquire) != Desk::kTaken) pause();
        shares = std::move(desk.next);
        desk.state.store(Desk::kEmpty, std::memory_order_release);
      }
      break;
    }
  }
}

// Calls body(begin, end) for ranges of [0, size) whose ends are multiples of `multiple`, on several threads. The caller works too, so
// this ends even if no thread of the pool is free. `bytes` is the amount of memory that all calls read.
template <typename Body>
void in_parallel(xla::ffi::ThreadPool& pool, int64_t size, int64_t multiple, int64_t bytes, int64_t shares_of_thread,
                 const Body& body) {
  int64_t threads = std::min<int64_t>(pool.num_threads(), bytes / kLeastBytes);
  int64_t blocks = (size + multiple - 1) / multiple;
  if (threads < 2 || blocks < 2) {
    body(0, size);
    return;
  }
  // More shares than threads, because another process may hold up a thread.
  int64_t count = std::min(blocks, std::min(shares_of_thread * threads, std::max(threads, bytes / kLeastBytes)));
  auto shares = std::make_shared<Shares>();
  shares->count = count;
  shares->body = [=, &body](int64_t i) {
    int64_t begin = blocks * i / count * multiple, end = std::min(size, blocks * (i + 1) / count * multiple);
    if (begin < end) body(begin, end);
  };
  for (int64_t i = 1; i < std::min(threads, count); ++i)
    if (!hand_over(shares)) pool.Schedule([shares] { work_and_wait(shares); });
  shares->work();
  for (int spins = 0; shares->done.load(std::memory_order_acquire) < count; ++spins)
    spins < 10000 ? pause() : std::this_thread::yield();
}
