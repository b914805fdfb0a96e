// The rows as the extension module sees them: `run` and `scratch_bytes` of call.h, and which code computes them.
#pragma once
#include <string>
#include <vector>

#include "call.h"

namespace lossbridge {

// One compilation of instruction_set.cpp.
struct InstructionSet {
  const char *name;
  bool (*supported)();  // by this processor
  // Computes the units [from, to) of units.h: losses, and gradients divided by `divisor`, which holds D. Does not sum.
  void (*compute)(const Call &, int64_t from, int64_t to, void *scratch);
  int64_t (*scratch_bytes)(const Call &);
};

// The best that the processor has, or the one that LOSSBRIDGE_INSTRUCTION_SET names; chosen when the library is loaded.
// Null if that one cannot be had; instruction_set_error() then says why, in one line.
const InstructionSet *instruction_set();
std::string instruction_set_error();

// All that the processor has, the best first, and a call on one of them: for tests.
std::vector<const InstructionSet *> instruction_sets();
void run_with(const InstructionSet &, const Call &);

// The end of a call whose losses somebody has, without the rest: of the samples of `call` (outer·inner) their number, what
// counts, the weights and the divisor are read, and the ratio is written to `result`. Null are `losses` and `result`, or
// `shares`, where w/D of each sample goes: what flows back to its loss.
void reduce(const Call &call, const void *losses, void *shares);

// Asks for huge pages below a buffer that nobody has touched yet. A hint: of smaller buffers, and on systems that have
// no such pages, nothing comes.
void advise(void *address, int64_t bytes);

}  // namespace lossbridge
