// Digests of what the rows compute on fixed problems, a line for every rule and dtype: equal lines are equal bits.
//
//   digests [INSTRUCTION_SET [THREADS]]      without arguments: the names of the instruction sets
#include <cstdio>
#include <cstdlib>

#include "problem.h"

using namespace lossbridge;

static uint64_t digest(const InstructionSet &set, int threads, int rule, int dtype) {
  constexpr uint64_t PROBLEMS = 24;
  uint64_t found = 0;
  for (uint64_t seed = 0; seed < PROBLEMS; seed++) {
    Random random(seed);
    uint8_t bytes[64];
    for (uint8_t &byte : bytes) byte = static_cast<uint8_t>(random.bits());
    const Bytes all = Problem(bytes, sizeof bytes, rule, dtype).run(set, {threads});
    found = hash(all.data(), all.size(), found);
  }
  return found;
}

int main(int count, char **arguments) {
  for (const InstructionSet *set : instruction_sets()) {
    if (count == 1) std::puts(set->name);
    if (count == 1 || std::string(arguments[1]) != set->name) continue;
    const int threads = count > 2 ? std::atoi(arguments[2]) : 1;
    for (int rule = 0; rule < RULES; rule++)
      for (int dtype = 0; dtype < FLOATS; dtype++)
        std::printf("%s %s %016llx\n", RULE_NAMES[rule], FLOAT_NAMES[dtype],
                    static_cast<unsigned long long>(digest(*set, threads, rule, dtype)));
    return 0;
  }
  return count == 1 ? 0 : 1;
}
