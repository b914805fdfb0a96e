// Rows of the Bernoulli family: every entry has a loss. The derivations are those of lossbridge/maths/bernoulli.py; here is
// what is done for digits.
//
// P and N are what counts for and against an outcome, P = pos_weight·(t(1−s) + s/2) and N = (1−t)(1−s) + s/2.
//
// 1. Logits x, e = exp(−|x|): loss = (P + N) log1p(e) + |x|·(N where x > 0, else P). The larger of p and 1 − p is
//    1/(1 + e), the smaller e/(1 + e); gradient = N p − P (1 − p). For the target, pos_weight·softplus(−x) − softplus(x).
// 2. Probabilities x clipped to [ε, 1 − ε]: loss = −P log p − N log1p(−p); gradient = N/(1−p) − P/p, 0 where clipped.
//    For the target, −pos_weight·log p + log1p(−p).
// 3. Focal, in double: L is the loss of (1) or (2) of B P and B N, with B = α P + (1−α) N if balanced, else 1.
//    q = P (1−p) + N p, loss = q^γ L, gradient = q^γ L' + γ q^(γ−1) q' L; both are 0 where q = 0.
#pragma once
#include "softmax.h"

namespace lossbridge {
namespace LOSSBRIDGE_NS {

// P and N, before pos_weight.
template <class F> struct Outcomes {
  Vector<F> keep, add;
  explicit Outcomes(double s) : keep(set(F(1 - s))), add(set(F(s / 2))) {}
  LOSSBRIDGE_METHOD void of(Vector<F> t, Vector<F> &positive, Vector<F> &negative) const {
    positive = fma(t, keep, add);
    negative = fma(set(F(1)) - t, keep, add);
  }
};

// 0 in place of an infinity that has no weight.
template <class V> LOSSBRIDGE_INLINE V weighted(V weight, V loss) { return weight == V{} ? V{} : weight * loss; }

// Losses and derivatives of n entries: body(j) is called for each vector; it writes the loss to spare[0].
template <class F, class Body> LOSSBRIDGE_INLINE void entries(Row<F> &r, const Body &body) {
  for (int64_t j = 0; j < r.m; j += WIDTH<F>) body(j);
}
template <class F> LOSSBRIDGE_INLINE Vector<F> positive_weight(const Row<F> &r, int64_t j) {
  return r.per_class ? load<Vector<F>>(r.per_class + j) : set(F(r.call.per_class_number));
}

// (1)
template <class F> static void bernoulli_logits(Row<F> &r) {
  typedef Vector<F> V;
  const Outcomes<F> outcomes(r.call.label_smoothing);
  const V none{}, f = set(F(r.factor)), keep = set(F(r.factor * (1 - r.call.label_smoothing)));
  const bool for_target = r.target_gradient();
  entries(r, [&](int64_t j) __attribute__((always_inline)) {
    V x = load<V>(r.x + j), pos, neg, weight = positive_weight(r, j);
    outcomes.of(load<V>(r.t + j), pos, neg);
    pos = pos * weight;
    auto above = x > none;
    V size = abs(x), e = exp_negative<F>(none - size);
    const Softplus<V> plus = softplus(e);
    V small = plus.log, large_share = plus.share, small_share = e * large_share;
    V against = above ? neg : pos;
    V loss = fma(pos + neg, small, weighted(against, size));
    store(r.spare[0] + j, loss);
    V p = above ? large_share : small_share, complement = above ? small_share : large_share;
    store(r.x + j, fma(neg, p, none - pos * complement) * f);
    if (for_target) {
      V of_pos = small + (above ? none : size), of_neg = small + (above ? size : none);
      of_pos = pos == none && of_pos == set(INF<F>) ? none : of_pos;
      of_neg = neg == none && of_neg == set(INF<F>) ? none : of_neg;
      store(r.t + j, (weight * of_pos - of_neg) * keep);
    }
  });
}

// (2), in double.
static void bernoulli_probabilities(Row<double> &r, const Bounds &bounds) {
  typedef Doubles V;
  const Outcomes<double> outcomes(r.call.label_smoothing);
  const V one = set(1.0), none{}, f = set(r.factor), keep = set(r.factor * (1 - r.call.label_smoothing));
  const V low = set(bounds.low), high = set(bounds.high);
  entries(r, [&](int64_t j) __attribute__((always_inline)) {
    V x = load<V>(r.x + j), pos, neg, weight = positive_weight(r, j);
    outcomes.of(load<V>(r.t + j), pos, neg);
    pos = pos * weight;
    Int64s outside = (x < low) | (x > high);
    V p = x < low ? low : x > high ? high : x;
    V of_pos = none - log<double>(p), of_neg = none - log1p<double>(none - p);
    store(r.spare[0] + j, weighted(pos, of_pos) + weighted(neg, of_neg));
    V gradient = (neg == none ? none : neg / (one - p)) - (pos == none ? none : pos / p);
    store(r.x + j, p != p ? p : outside != Int64s{} ? none : gradient * f);
    of_pos = pos == none && p == none ? none : of_pos;
    of_neg = neg == none && p == one ? none : of_neg;
    store(r.t + j, (weight * of_pos - of_neg) * keep);
  });
}

// (3) of p and 1 − p, the losses of an outcome for and against, and the derivatives of p and of L without B.
struct FocalEntry {
  Doubles p, complement, of_positive, of_negative, turn, slope;
};
template <class Of> LOSSBRIDGE_INLINE void bernoulli_focal(Row<double> &r, const Of &of) {
  typedef Doubles V;
  const Outcomes<double> outcomes(r.call.label_smoothing);
  const Power power(r.call.gamma);
  const V one = set(1.0), none{}, f = set(r.factor), gamma = set(r.call.gamma);
  entries(r, [&](int64_t j) __attribute__((always_inline)) {
    V pos, neg, alpha = positive_weight(r, j);
    outcomes.of(load<V>(r.t + j), pos, neg);
    V balance = r.call.balanced ? alpha * pos + (one - alpha) * neg : one;
    FocalEntry e = of(load<V>(r.x + j), pos, neg);
    V loss = balance * (weighted(pos, e.of_positive) + weighted(neg, e.of_negative)), slope = balance * e.slope;
    V value = loss, gradient = slope;
    if (power.gamma != 0) {
      V q = pos * e.complement + neg * e.p, raised = power(q);
      V turn = (neg - pos) * e.turn;
      turn = turn == none ? none : gamma * (raised / q) * turn * loss;
      value = q == none ? none : raised * loss;
      gradient = q == none ? none : fma(raised, slope, turn);
    }
    store(r.spare[0] + j, value);
    store(r.x + j, gradient * f);
  });
}

static void bernoulli_focal_logits(Row<double> &r) {
  const Doubles none{};
  bernoulli_focal(r, [&](Doubles x, Doubles pos, Doubles neg) __attribute__((always_inline)) {
    auto above = x > none;
    Doubles size = abs(x), e = exp_negative<double>(none - size);
    const Softplus<Doubles> plus = softplus(e);
    Doubles small = plus.log, large_share = plus.share, small_share = e * large_share;
    Doubles p = above ? large_share : small_share, complement = above ? small_share : large_share;
    return FocalEntry{p,
                      complement,
                      small + (above ? none : size),
                      small + (above ? size : none),
                      p * complement,
                      fma(neg, p, none - pos * complement)};
  });
}

static void bernoulli_focal_probabilities(Row<double> &r, const Bounds &bounds) {
  const Doubles one = set(1.0), none{}, low = set(bounds.low), high = set(bounds.high);
  bernoulli_focal(r, [&](Doubles x, Doubles pos, Doubles neg) __attribute__((always_inline)) {
    Int64s outside = (x < low) | (x > high);
    Doubles p = x < low ? low : x > high ? high : x;
    Doubles slope = (neg == none ? none : neg / (one - p)) - (pos == none ? none : pos / p);
    return FocalEntry{x,
                      one - x,
                      none - log<double>(p),
                      none - log1p<double>(none - p),
                      one,
                      p != p ? p : outside != Int64s{} ? none : slope};
  });
}

}  // namespace LOSSBRIDGE_NS
}  // namespace lossbridge
