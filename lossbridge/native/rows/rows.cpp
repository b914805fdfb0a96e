// A call from end to end: the instruction set, the divisor, the units on the threads, the sum.
// Compiled for the baseline alone, so that every machine adds in the same order with the same roundings.
#include "rows.h"

#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "arithmetic.h"
#include "pool.h"
#include "samples.h"
#include "units.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace lossbridge {

#define LOSSBRIDGE_DECLARE(set)                              \
  namespace set {                                            \
  void compute(const Call &, int64_t, int64_t, void *);      \
  int64_t scratch_bytes(const Call &);                       \
  }
LOSSBRIDGE_DECLARE(baseline)
LOSSBRIDGE_DECLARE(avx2)
LOSSBRIDGE_DECLARE(avx512)
LOSSBRIDGE_DECLARE(neon)

namespace {

// The instruction set.

#if defined(__x86_64__)
// Asked of the processor itself: what __builtin_cpu_supports knows differs from compiler to compiler.
struct Processor {
  unsigned leaf1 = 0, leaf7 = 0, extended = 0, saved = 0;
  Processor() {
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d)) leaf1 = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) leaf7 = b;
    if (__get_cpuid(0x80000001, &a, &b, &c, &d)) extended = c;
    if (leaf1 & bit_OSXSAVE) __asm__("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
  }
};
bool has_all(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }
bool has_baseline() { return true; }
bool has_avx2() {  // what -march=x86-64-v3 may use; the system must save the registers' upper halves
  const Processor p;
  return has_all(p.leaf1, bit_FMA | bit_F16C | bit_MOVBE) && has_all(p.leaf7, bit_AVX2 | bit_BMI | bit_BMI2) &&
         has_all(p.extended, bit_LZCNT) && has_all(p.saved, 0x6);
}
bool has_avx512() {  // -march=x86-64-v4
  const Processor p;
  return has_avx2() && has_all(p.leaf7, bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL) &&
         has_all(p.saved, 0xe6);
}
const InstructionSet SETS[] = {{"avx512", has_avx512, avx512::compute, avx512::scratch_bytes},
                               {"avx2", has_avx2, avx2::compute, avx2::scratch_bytes},
                               {"baseline", has_baseline, baseline::compute, baseline::scratch_bytes}};
#elif defined(__aarch64__)
bool has_neon() { return true; }
const InstructionSet SETS[] = {{"neon", has_neon, neon::compute, neon::scratch_bytes}};
#else
bool has_baseline() { return true; }
const InstructionSet SETS[] = {{"baseline", has_baseline, baseline::compute, baseline::scratch_bytes}};
#endif

const char *wanted() {
  const char *name = std::getenv("LOSSBRIDGE_INSTRUCTION_SET");
  return name != nullptr && *name != 0 ? name : nullptr;
}

const InstructionSet *choose() {
  for (const InstructionSet &set : SETS)
    if (set.supported() && (wanted() == nullptr || std::string(wanted()) == set.name)) return &set;
  return nullptr;
}

const InstructionSet *const chosen = choose();

// Memory that a thread keeps for its next call: fresh pages would cost more than what is computed in them.

class Scratch {
 public:
  ~Scratch() { release(); }
  char *at_least(int64_t wanted) {  // null if there is none
    if (wanted <= bytes) return memory;
    release();
    memory = static_cast<char *>(::operator new(static_cast<size_t>(wanted), ALIGNMENT, std::nothrow));
    bytes = memory == nullptr ? 0 : wanted;
    return memory;
  }

 private:
  static constexpr std::align_val_t ALIGNMENT{64};
  char *memory = nullptr;
  int64_t bytes = 0;
  void release() { ::operator delete(memory, ALIGNMENT); }
};
thread_local Scratch scratch;

// Sums.

// Neumaier's: `low` collects what the additions to `high` lose (Knuth's TwoSum).
struct Sum {
  double high = 0, low = 0;
  void add(double x) {
    const double sum = high + x, moved = sum - high;
    low += (high - (sum - moved)) + (x - moved);
    high = sum;
  }
  // Once `high` is infinite or not a number it stays so, and `low` is not a number.
  double value() const { return std::isfinite(high) ? high + low : high; }
};

// At most CHUNK numbers, in eight lanes. What does not count is 0, whatever is stored there.
template <class Real>
Sum sum_chunk(const Real *x, const uint8_t *counted, int64_t n) {
  constexpr int64_t LANES = 8;
  Sum lanes[LANES];
  for (int64_t i = 0; i < n; i += LANES)
    for (int64_t lane = 0; lane < std::min(LANES, n - i); lane++) {
      const double number = counted == nullptr || counted[i + lane] ? x[i + lane] : 0;
      if (sizeof(Real) == 8)
        lanes[lane].add(number);
      else
        lanes[lane].high += number;  // a double has 29 bits more than these numbers: it need not be compensated
    }
  Sum total;
  for (const Sum &lane : lanes) {
    total.add(lane.high);
    total.low += lane.low;
  }
  return total;
}

// Of chunk number `chunk` of an array of the result's dtype.
Sum sum_chunk(const Call &c, const void *x, const uint8_t *counted, int64_t chunk) {
  const int64_t from = chunk * CHUNK, n = std::min(CHUNK, samples(c) - from);
  if (counted != nullptr) counted += from;
  if (result_is_double(c)) return sum_chunk(static_cast<const double *>(x) + from, counted, n);
  return sum_chunk(static_cast<const float *>(x) + from, counted, n);
}

double total(const std::vector<Sum> &chunks) {
  Sum total;
  for (const Sum &chunk : chunks) {
    total.add(chunk.high);
    total.low += chunk.low;
  }
  return total.value();
}

// A call that is being computed.
struct Job {
  const InstructionSet &set;
  Call call;
  int threads;
};

// Of an array of all samples.
double total(const Job &job, const void *x, const uint8_t *counted) {
  std::vector<Sum> chunks(static_cast<size_t>(ceil_div(samples(job.call), CHUNK)));
  share_out(static_cast<int64_t>(chunks.size()), 8, job.threads, [&](int, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) chunks[i] = sum_chunk(job.call, x, counted, i);
  });
  return total(chunks);
}

double divisor(const Job &job) {
  const Call &c = job.call;
  switch (c.divides) {
    case Divisor::NONE:
      return 1;
    case Divisor::GIVEN:
      return c.divisor;
    case Divisor::WEIGHTS:
      if (c.weight != nullptr) return total(job, c.weight, c.counted);
      [[fallthrough]];  // every weight is 1
    case Divisor::COUNTED:
      break;
  }
  if (c.counted == nullptr) return static_cast<double>(samples(c));
  int64_t count = 0;
  for (int64_t i = 0; i < samples(c); i++) count += c.counted[i] != 0;
  return static_cast<double>(count);
}

// Σ l·w / D, once D is there.
void put_ratio(const Call &c, double sum) {
  const double ratio = c.divisor == 0 ? 0 : sum / c.divisor;
  put(c, c.result, 0, ratio);
}

// Units.

int threads_for(const Call &c) {
  constexpr int64_t WORTH_A_THREAD = SMALL / 2;
  if (is_small(c)) return 1;
  const int64_t useful = std::min<int64_t>({c.threads, units(c), entries(c) / WORTH_A_THREAD});
  return static_cast<int>(std::max<int64_t>(1, useful));
}

// About eight pieces a thread, so that one that is interrupted leaves its share to the others; but none so small that
// taking it is seen in the time.
int64_t step_for(const Call &c, int threads) {
  constexpr int64_t WORTH_TAKING = 8192;
  const int64_t even = ceil_div(units(c), int64_t{8} * threads);
  return std::max(even, ceil_div(WORTH_TAKING, std::max<int64_t>(1, entries_of_unit(c))));
}

// Hands the units out: work(from, to, memory), where `memory` has what the rows need and `more` for every thread.
template <class Work>
void on_threads(const Job &job, int64_t more, const Work &work) {
  const Call &c = job.call;
  // No two threads write to one cache line.
  const int64_t own = ceil_div(job.set.scratch_bytes(c) + more, 128) * 128;
  char *memory = scratch.at_least(own * job.threads);
  if (memory == nullptr && own > 0) throw std::bad_alloc();
  share_out(units(c), step_for(c, job.threads), job.threads,
            [&](int thread, int64_t from, int64_t to) { work(from, to, memory + own * thread); });
}

// Elementwise there are as many losses as entries. Each chunk is added up while it is in the cache, and where nobody
// asked for the losses they are stored nowhere else.
double sum_of_chunks(const Job &job) {
  const Call &c = job.call;
  const int64_t losses_bytes = c.losses == nullptr ? CHUNK * result_bytes(c) : 0;
  std::vector<Sum> chunks(static_cast<size_t>(units(c)));
  on_threads(job, losses_bytes, [&](int64_t from, int64_t to, char *memory) {
    for (int64_t unit = from; unit < to; unit++) {
      const int64_t offset = unit * CHUNK * result_bytes(c);
      Call one = c;
      // `compute` adds the offset again.
      if (c.losses == nullptr) one.losses = reinterpret_cast<void *>(reinterpret_cast<intptr_t>(memory) - offset);
      job.set.compute(one, unit, unit + 1, memory + losses_bytes);
      chunks[unit] = sum_chunk(one, one.losses, nullptr, unit);
    }
  });
  return total(chunks);
}

void compute(const Job &job) {
  on_threads(job, 0, [&](int64_t from, int64_t to, char *memory) { job.set.compute(job.call, from, to, memory); });
}

// The losses of rows are few: they are stored, and added up when all are there.
double sum_of_rows(Job job) {
  constexpr int64_t FEW = 1024;
  double few[FEW];
  std::unique_ptr<double[]> many;
  if (job.call.losses == nullptr) {
    const int64_t count = samples(job.call);
    if (count > FEW) many.reset(new double[static_cast<size_t>(count)]);
    job.call.losses = many ? many.get() : few;
  }
  compute(job);
  return total(job, job.call.losses, nullptr);
}

}  // namespace

const InstructionSet *instruction_set() { return chosen; }

std::vector<const InstructionSet *> instruction_sets() {
  std::vector<const InstructionSet *> found;
  for (const InstructionSet &set : SETS)
    if (set.supported()) found.push_back(&set);
  return found;
}

std::string instruction_set_error() {
  std::string names;
  for (const InstructionSet *set : instruction_sets()) names = set->name + (names.empty() ? "" : ", " + names);
  return "LOSSBRIDGE_INSTRUCTION_SET=" + std::string(wanted()) + " is none of " + names + ", which this processor and this build have";
}

void advise(void *address, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr int64_t LARGE = 16 << 20;  // smaller memory is mostly recycled, and was touched before
  if (bytes < LARGE) return;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t from = (reinterpret_cast<uintptr_t>(address) + page - 1) / page * page;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(address) + static_cast<uintptr_t>(bytes)) / page * page;
  madvise(reinterpret_cast<void *>(from), to - from, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

int64_t scratch_bytes(const Call &c) { return chosen->scratch_bytes(c); }

void run_with(const InstructionSet &set, const Call &call) {
  const UsualArithmetic usual;
  Job job{set, call, threads_for(call)};
  Call &c = job.call;
  c.divisor = divisor(job);  // `compute` divides by it: the mean's gradient comes out at once
  if (call.divides == Divisor::NONE || c.result == nullptr) return compute(job);
  put_ratio(c, c.elementwise ? sum_of_chunks(job) : sum_of_rows(job));
}

void run(const Call &call) { run_with(*chosen, call); }

void reduce(const Call &call, const void *losses, void *shares) {
  const UsualArithmetic usual;
  Job job{*chosen, call, threads_for(call)};
  Call &c = job.call;
  c.divisor = divisor(job);
  if (shares != nullptr)
    for (int64_t i = 0; i < samples(c); i++) put(c, shares, i, counts(c, i) ? share_of(c, i) : 0);
  if (losses == nullptr) return;
  std::unique_ptr<double[]> products;  // of the result's dtype
  if (c.weight != nullptr) {
    products.reset(new double[static_cast<size_t>(samples(c))]);
    for (int64_t i = 0; i < samples(c); i++)
      put(c, products.get(), i, counts(c, i) ? weighted(c, at(c, losses, i), i) : 0);
    losses = products.get();
  }
  put_ratio(c, total(job, losses, c.counted));
}

}  // namespace lossbridge
