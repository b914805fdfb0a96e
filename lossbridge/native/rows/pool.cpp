#include "pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "arithmetic.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace lossbridge {
namespace {

class Pool {
 public:
  // Calls job(0) here and job(1) … job(helpers) on other threads, as far as those come before the first is done.
  void run(int helpers, const std::function<void(int)> &job) {
    std::unique_lock<std::mutex> use(in_use, std::try_to_lock);
    if (!use.owns_lock()) return job(0);  // another caller has the threads
    {
      std::lock_guard<std::mutex> lock(mutex);
      current = &job;
      grow(helpers);
      open = std::min(helpers, threads);
      started = 0;
    }
    wake.notify_all();
    job(0);
    std::unique_lock<std::mutex> lock(mutex);
    open = 0;  // who wakes up only now would find nothing to do: he is not waited for
    finished.wait(lock, [this] { return running == 0; });
  }

 private:
  std::mutex in_use;  // held by the caller whose job it is
  std::mutex mutex;   // guards what follows
  std::condition_variable wake, finished;
  const std::function<void(int)> *current = nullptr;
  int threads = 0;
  int open = 0;     // how many more threads may join the job
  int started = 0;  // how many have
  int running = 0;  // how many are at it

  void grow(int wanted) {
    try {
      for (; threads < wanted; threads++) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error &) {
      // The system gives no more: those that are there do the work.
    }
  }

  [[noreturn]] void serve() {
    const UsualArithmetic usual;  // a thread begins with the mode of the one that starts it
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      wake.wait(lock, [this] { return open > 0; });
      open--;
      running++;
      const int number = ++started;
      const std::function<void(int)> &job = *current;
      lock.unlock();
      job(number);
      lock.lock();
      if (--running == 0) finished.notify_one();
    }
  }
};

// Made by the first who needs it, and never destroyed: at the end of the process its threads still sleep in it.
std::atomic<Pool *> the_pool{nullptr};

Pool &pool() {
  Pool *found = the_pool.load();
  if (found == nullptr) {
    Pool *made = new Pool;
    if (the_pool.compare_exchange_strong(found, made)) return *made;
    delete made;  // another thread was faster
  }
  return *found;
}

#if !defined(_WIN32)
// A forked child has none of the threads, and finds the locks as they were. It forgets the pool, without looking at it.
const int at_fork = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
#endif

}  // namespace

void share_out_on_pool(int64_t count, int64_t step, int threads, const Work &work) {
  const int64_t pieces = (count + step - 1) / step;
  const int helpers = static_cast<int>(std::min<int64_t>(threads, pieces)) - 1;
  std::atomic<int64_t> next{0};
  pool().run(helpers, [&](int thread) {
    for (;;) {
      const int64_t from = next.fetch_add(step, std::memory_order_relaxed);
      if (from >= count) return;
      work(thread, from, std::min(from + step, count));
    }
  });
}

}  // namespace lossbridge
