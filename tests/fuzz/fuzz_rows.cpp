// Random calls of the rows. Sanitizers see errors of memory and of arithmetic; here is compared what comes out: with
// every instruction set, with 1 and 3 threads, over two different contents of the memory that is written to, with the
// gradient over the predictions, and where nobody asks for the losses.
//
//   fuzz_rows SECONDS [SEED]      its own loop, from this seed on; after a failure it prints the seed that repeats it
//
// Built with LOSSBRIDGE_LIBFUZZER it has no loop: libFuzzer looks for the bytes.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "problem.h"

using namespace lossbridge;

static void expect(const Bytes &one, const Bytes &other, const Problem &problem, const char *what) {
  if (one == other) return;
  size_t at = 0;
  while (at < std::min(one.size(), other.size()) && one[at] == other[at]) at++;
  std::fprintf(stderr, "fuzz_rows: %s differs from byte %zu of %zu on: %s\n", what, at, one.size(),
               problem.words().c_str());
  std::abort();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const Problem problem(data, size);
  const auto sets = instruction_sets();
  const auto run = [&](const Problem::How &how) { return problem.run(*sets.front(), how); };
  Bytes found = run({});
  expect(found, run({1, 0x5a}), problem, "what the memory held before");
  expect(found, run({3}), problem, "3 threads");
  if (problem.has_gradient()) expect(found, run({1, 0xa5, true}), problem, "in place");
  for (const InstructionSet *set : sets) expect(found, problem.run(*set, {}), problem, set->name);
  const Bytes fewer = run({1, 0xa5, false, false});
  found.resize(fewer.size());  // the losses come last
  expect(found, fewer, problem, "without losses");
  return 0;
}

#if !defined(LOSSBRIDGE_LIBFUZZER)
static uint64_t seed = 0;
static void say_seed(int) { std::fprintf(stderr, "fuzz_rows: repeat it by `fuzz_rows 0 %llu`\n", (unsigned long long)seed); }
// Sanitizers end the process by SIGABRT too.
extern "C" const char *__asan_default_options() { return "abort_on_error=1"; }
extern "C" const char *__ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

int main(int count, char **arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 20;
  seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0;
  std::signal(SIGABRT, say_seed);
  const auto start = std::chrono::steady_clock::now();
  int64_t calls = 0;
  do {
    uint8_t bytes[64];
    Random random(seed);
    for (uint8_t &byte : bytes) byte = static_cast<uint8_t>(random.bits());
    if (seconds == 0) std::fprintf(stderr, "fuzz_rows: %s\n", Problem(bytes, sizeof bytes).words().c_str());
    LLVMFuzzerTestOneInput(bytes, sizeof bytes);
    seed++, calls++;
  } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds);
  std::printf("fuzz_rows: %lld calls agree\n", static_cast<long long>(calls));
}
#endif
