// The processor's mode of arithmetic while rows are computed: the usual one, whatever the caller's is.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <cfenv>
#endif

namespace lossbridge {

// XLA's threads, and PyTorch's after torch.set_flush_denormal(True), take subnormal numbers for 0. The rows need them:
// float16 has its smallest numbers there.
class UsualArithmetic {
 public:
#if defined(__x86_64__)
  UsualArithmetic() : before(_mm_getcsr()) { _mm_setcsr(0x1f80); }  // rounds to nearest, raises nothing
  ~UsualArithmetic() { _mm_setcsr(before); }

 private:
  unsigned before;
#else
  UsualArithmetic() {
    std::fegetenv(&before);
    std::fesetenv(FE_DFL_ENV);
  }
  ~UsualArithmetic() { std::fesetenv(&before); }

 private:
  std::fenv_t before;
#endif
};

}  // namespace lossbridge
