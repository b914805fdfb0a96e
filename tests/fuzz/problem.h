// A random call of the rows, made of bytes: the first bytes choose its shape, rule and options, all together seed its
// numbers. No function of libm is used, so that the same bytes are the same problem on every machine.
#pragma once
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "rows/rows.h"
#include "rows/units.h"

namespace lossbridge {

constexpr int RULES = 17, FLOATS = 4;
const char *const RULE_NAMES[RULES] = {
    "softmax_labels",          "softmax_distributions", "probabilities_labels", "probabilities_distributions",
    "log_loss",                "softmax_focal",         "probabilities_focal",  "bernoulli_logits",
    "bernoulli_probabilities", "bernoulli_focal_logits", "bernoulli_focal_probabilities", "divergence_logits",
    "divergence_probabilities", "mass_labels", "mass_distributions",
    "jensen_shannon_logits", "total_variation_logits"};
const char *const FLOAT_NAMES[FLOATS] = {"float32", "float64", "float16", "bfloat16"};

// Numbers from a seed: SplitMix64 of Steele, Lea and Flood, 2014.
class Random {
 public:
  explicit Random(uint64_t seed) : state(seed) {}
  uint64_t bits() {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  double bell() { return 2 * (unit() + unit() + unit() + unit()) - 4; }  // about normal
  bool one_in(int64_t n) { return below(n) == 0; }
  template <class T, size_t N>
  T any(const T (&choices)[N]) {
    return choices[below(N)];
  }

 private:
  uint64_t state;
};

inline uint64_t hash(const void *bytes, size_t size, uint64_t start = 0xcbf29ce484222325) {  // FNV-1a
  for (size_t i = 0; i < size; i++) start = (start ^ static_cast<const uint8_t *>(bytes)[i]) * 0x100000001b3;
  return start;
}

inline int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::FLOAT64 || dtype == Dtype::INT64 ? 8 : dtype == Dtype::FLOAT32 || dtype == Dtype::INT32 ? 4 : 2;
}

// Memory of exactly this size, so that AddressSanitizer sees a step beyond it.
using Bytes = std::vector<uint8_t>;

class Problem {
 public:
  Call call{};

  Problem(const uint8_t *bytes, size_t size, int only_rule = -1, int only_dtype = -1)
      : random(hash(bytes, size)), next(bytes), end(bytes + size) {
    const int rule = choice(RULES), dtype = choice(FLOATS);
    call.rule = static_cast<Rule>(only_rule < 0 ? rule : only_rule);
    call.dtype = static_cast<Dtype>(only_dtype < 0 ? dtype : only_dtype);
    choose_target();
    choose_shape();
    choose_options();
    fill_inputs();
    choose_outputs();
  }

  struct How {
    int threads = 1;
    uint8_t before = 0xa5;  // fills what is written to: what is not written shows, and so does what is read from there
    bool in_place = false;  // the gradient over the predictions
    bool losses = true;     // ask for them, if the problem does
  };

  // What the call writes: result, gradients and losses, one after the other.
  Bytes run(const InstructionSet &set, const How &how) const {
    Call c = call;
    const bool asks = wants[0] && how.losses;
    const uint8_t before = how.before;
    Bytes losses(asks ? size_t(samples(c) * result_bytes(c)) : 0, before), result(size_t(result_bytes(c)), before);
    Bytes gradient(wants[2] ? pred.size() : 0, before), target_gradient(wants[3] ? target.size() : 0, before);
    if (how.in_place) gradient = pred;
    c.threads = how.threads;
    c.losses = asks ? losses.data() : nullptr;
    c.result = wants[1] ? result.data() : nullptr;
    c.gradient = wants[2] ? gradient.data() : nullptr;
    c.target_gradient = wants[3] ? target_gradient.data() : nullptr;
    if (how.in_place) c.pred = gradient.data();
    run_with(set, c);
    Bytes all;
    if (wants[1] && c.divides != Divisor::NONE) append(all, canonical(result, result_dtype()));
    append(all, canonical(gradient, c.dtype));
    append(all, canonical(target_gradient, c.target_dtype));
    append(all, canonical(losses, result_dtype()));
    return all;
  }

  bool has_gradient() const { return wants[2]; }

  std::string words() const {
    const Call &c = call;
    return std::string(RULE_NAMES[int(c.rule)]) + " " + FLOAT_NAMES[int(c.dtype)] + " target " +
           std::to_string(int(c.target_dtype)) + (c.elementwise ? " elementwise " : " ") + std::to_string(c.outer) + "x" +
           std::to_string(c.classes) + "x" + std::to_string(c.inner) + " smoothing " + std::to_string(c.label_smoothing) +
           " epsilon " + std::to_string(c.epsilon) + " temperature " + std::to_string(c.temperature) + " gamma " +
           std::to_string(c.gamma) + " scale " + std::to_string(c.logit_scale) + " cap " + std::to_string(c.softcap) +
           " z-loss " + std::to_string(c.z_loss) + " beta " + std::to_string(c.beta) + " scaling " +
           std::to_string(c.mixture_scaling) + (c.per_class ? " per_class" : "") + (c.counted ? " counted" : "") +
           (c.weight ? " weight" : "") + (c.upstream_each ? " upstream_each" : "") + " divides " +
           std::to_string(int(c.divides));
  }

 private:
  Random random;
  const uint8_t *next, *end;
  Bytes pred, target, per_class, counted, weight, upstream_each;
  bool wants[4] = {};  // losses, result, gradient, target's gradient

  int choice(int n) { return next < end ? *next++ % n : 0; }
  bool yes() { return choice(2) == 1; }
  bool labels() const { return call.target_dtype == Dtype::INT32 || call.target_dtype == Dtype::INT64; }
  bool probabilities() const {
    switch (call.rule) {
      case Rule::SOFTMAX_LABELS:
      case Rule::SOFTMAX_DISTRIBUTIONS:
      case Rule::SOFTMAX_FOCAL:
      case Rule::BERNOULLI_LOGITS:
      case Rule::BERNOULLI_FOCAL_LOGITS:
      case Rule::DIVERGENCE_LOGITS:
      case Rule::JENSEN_SHANNON_LOGITS:
      case Rule::TOTAL_VARIATION_LOGITS:
        return false;
      default:
        return true;
    }
  }
  bool logits_as_target() const {
    return call.rule == Rule::DIVERGENCE_LOGITS || call.rule == Rule::JENSEN_SHANNON_LOGITS ||
           call.rule == Rule::TOTAL_VARIATION_LOGITS;
  }
  bool bernoulli() const { return call.rule >= Rule::BERNOULLI_LOGITS && call.rule <= Rule::BERNOULLI_FOCAL_PROBABILITIES; }
  Dtype result_dtype() const { return call.dtype == Dtype::FLOAT64 ? Dtype::FLOAT64 : Dtype::FLOAT32; }

  void choose_target() {
    const Dtype integers[] = {Dtype::INT32, Dtype::INT64};
    const bool long_labels = yes();
    call.target_dtype = call.dtype;
    switch (call.rule) {
      case Rule::SOFTMAX_LABELS:
      case Rule::PROBABILITIES_LABELS:
      case Rule::LOG_LOSS:
      case Rule::MASS_LABELS:
        call.target_dtype = integers[long_labels];
        break;
      default:
        break;
    }
    call.elementwise = bernoulli() && yes();
  }

  void choose_shape() {
    const int64_t lengths[] = {1, 2, 3, 5, 10, 16, 17, 31, 33, 64, 100}, long_lengths[] = {255, 1000, 4097, 9000, 70000};
    const int kind = choice(32);
    call.outer = choice(6);
    call.classes = lengths[choice(11)];
    call.inner = yes() ? 1 : 1 + choice(40);
    if (kind < 4) call.classes = long_lengths[choice(5)], call.outer = 1, call.inner = 1 + choice(2);
    if (kind == 4) call.outer = 1 + 70000 / (call.classes * call.inner);             // large enough for threads
    if (kind == 5 && call.inner == 1) call.outer = 1 + 5000 / call.classes;          // more samples than the stack holds
    if (call.elementwise && yes()) call.classes *= call.inner, call.inner = 1;
  }

  void choose_options() {
    const double smoothings[] = {0, 0, .1, 1}, epsilons[] = {0, 1e-7, .1, 1e-3}, temperatures[] = {1, 2, .5, 20};
    const double gammas[] = {0, 2, .5, 5}, numbers[] = {1, .25, 3, 0}, divisors[] = {1, 7, 0, -2};
    const double upstreams[] = {1, -.5, 1024, 0};
    const double scales[] = {1, 1, .5, 30}, caps[] = {0, 0, 2, 30}, z_losses[] = {0, 0, 1e-4, 1};
    const double betas[] = {.5, .25, .9, 1e-6, 0, 1, 1e-310, 1 - 0x1p-53};
    call.label_smoothing = smoothings[choice(4)];
    call.epsilon = epsilons[choice(4)];
    call.temperature = temperatures[choice(4)];
    call.gamma = gammas[choice(4)];
    call.logit_scale = scales[choice(4)];
    call.softcap = caps[choice(4)];
    call.z_loss = z_losses[choice(4)];
    call.beta = betas[choice(8)];
    call.mixture_scaling = yes() ? 1 : call.beta * (1 - call.beta);
    call.per_class_number = numbers[choice(4)];
    call.balanced = yes();
    call.domain = yes();
    call.divides = static_cast<Divisor>(choice(4));
    call.divisor = divisors[choice(4)];
    call.upstream = upstreams[choice(4)];
    call.threads = 1;
  }

  void fill_inputs() {
    const int values = choice(6), uses = choice(16);
    pred = numbers(call.dtype, entries(call), values, probabilities());
    target = labels() ? label_numbers() : numbers(call.dtype, entries(call), choice(4), !logits_as_target());
    call.pred = pred.data();
    call.target = target.data();
    if (uses & 1) call.per_class = (per_class = numbers(result_dtype(), call.classes, 0, true)).data();
    if (uses & 2) {
      counted.resize(size_t(samples(call)));
      for (uint8_t &one : counted) one = !random.one_in(3);
      call.counted = counted.data();
    }
    if (uses & 4) call.weight = (weight = numbers(result_dtype(), samples(call), 3, true)).data();
    if (uses & 8) call.upstream_each = (upstream_each = numbers(result_dtype(), samples(call), 0, false)).data();
  }

  void choose_outputs() {
    const int chosen = choice(16);
    for (int i = 0; i < 4; i++) wants[i] = chosen >> i & 1;
    if (!has_target_gradient(call.rule)) wants[3] = false;
    if (chosen == 0) wants[0] = wants[2] = true;
  }

  // kind 0: plain; 1: with special values; 2: far apart; 3: with zeros and ones; 4: nearly equal; 5: any bits.
  Bytes numbers(Dtype dtype, int64_t count, int kind, bool positive) {
    const double special[] = {0,
                              -0.0,
                              1,
                              -1,
                              std::numeric_limits<double>::infinity(),
                              -std::numeric_limits<double>::infinity(),
                              std::numeric_limits<double>::quiet_NaN(),
                              1e-45,
                              5e-324,
                              3.4028234663852886e38,
                              -3.4028234663852886e38,
                              6e-8,
                              65504,
                              88.7,
                              -104};
    const double round[] = {0, 1};
    const bool all_special = random.one_in(4);
    Bytes bytes(size_t(count * bytes_of(dtype)));
    for (int64_t i = 0; i < count; i++) {
      double x = positive ? random.unit() : 3 * random.bell();
      if (kind == 1 && (all_special || random.one_in(8))) x = random.any(special);
      if (kind == 2) x *= 1000;
      if (kind == 3 && random.one_in(3)) x = random.any(round);
      if (kind == 4) x = .5 + x * 1e-6;
      const uint64_t any = random.bits();
      if (kind == 5)
        std::memcpy(&bytes[size_t(i * bytes_of(dtype))], &any, size_t(bytes_of(dtype)));
      else
        put(bytes, dtype, i, x);
    }
    return bytes;
  }

  Bytes label_numbers() {
    Bytes bytes(size_t(samples(call) * bytes_of(call.target_dtype)));
    const bool outside = random.one_in(3);
    for (int64_t i = 0; i < samples(call); i++) {
      int64_t label = random.below(std::max<int64_t>(1, call.classes));
      if (outside && random.one_in(4)) label = random.one_in(2) ? -1 - random.below(200) : call.classes + random.below(3);
      const int32_t narrow = static_cast<int32_t>(label);
      if (call.target_dtype == Dtype::INT64)
        std::memcpy(&bytes[size_t(8 * i)], &label, 8);
      else
        std::memcpy(&bytes[size_t(4 * i)], &narrow, 4);
    }
    return bytes;
  }

  // Halves are cut off rather than rounded: any number near to it will do.
  static void put(Bytes &bytes, Dtype dtype, int64_t i, double x) {
    uint8_t *at = &bytes[size_t(i * bytes_of(dtype))];
    const float f = static_cast<float>(x);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    uint16_t half = static_cast<uint16_t>(bits >> 16);  // bfloat16
    if (dtype == Dtype::FLOAT16) {
      const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
      uint32_t rest = magnitude < 0x38800000 ? 0 : (magnitude - 0x38000000) >> 13;
      if (magnitude >= 0x47800000) rest = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
      half = static_cast<uint16_t>(sign | rest);
    }
    if (dtype == Dtype::FLOAT64)
      std::memcpy(at, &x, 8);
    else if (dtype == Dtype::FLOAT32)
      std::memcpy(at, &f, 4);
    else
      std::memcpy(at, &half, 2);
  }

  // Not-a-numbers are one: which of them comes out depends on the processor.
  static Bytes canonical(Bytes bytes, Dtype dtype) {
    const int64_t size = bytes_of(dtype);
    const uint64_t infinity = dtype == Dtype::FLOAT64   ? 0x7ff0000000000000
                              : dtype == Dtype::FLOAT32 ? 0x7f800000
                              : dtype == Dtype::FLOAT16 ? 0x7c00
                                                        : 0x7f80;
    const uint64_t sign = uint64_t{1} << (8 * size - 1);
    for (size_t i = 0; i + size_t(size) <= bytes.size(); i += size_t(size)) {
      uint64_t bits = 0;
      std::memcpy(&bits, &bytes[i], size_t(size));
      if ((bits & (sign - 1)) > infinity) std::memset(&bytes[i], 0x7f, size_t(size));
    }
    return bytes;
  }
  static void append(Bytes &all, const Bytes &more) { all.insert(all.end(), more.begin(), more.end()); }
};

}  // namespace lossbridge
