// Threads of our own: OpenMP's would fight with the second copy that PyTorch brings, spin at barriers, and hang in a
// forked child.
#pragma once
#include <cstdint>
#include <functional>

namespace lossbridge {

// work(thread, from, to), which must not throw; 0 <= thread < threads, and no two pieces run at once on one `thread`.
using Work = std::function<void(int thread, int64_t from, int64_t to)>;

// Calls `work` for pieces of `step` that together are [0, count), on this thread and up to `threads` - 1 others, and
// returns when all are done. Which thread gets which piece is open: results must not depend on it.
void share_out_on_pool(int64_t count, int64_t step, int threads, const Work &work);

template <class F>
void share_out(int64_t count, int64_t step, int threads, const F &work) {
  if (threads <= 1 || count <= step) {
    if (count > 0) work(0, int64_t{0}, count);
  } else {
    share_out_on_pool(count, step, threads, std::cref(work));
  }
}

}  // namespace lossbridge
