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

// What the entries read, x, t and a weight a class, and write: losses to `losses`, and the gradients.
template <class F> static Arrays<F, 3, 3> entries(const Row<F> &r, F *losses) {
  return {{r.x, r.target, r.per_class}, {0, 0, F(r.call.per_class_number)}, {losses, r.gradient, r.target_gradient}};
}

// (1)
template <class F> static void bernoulli_logits(Row<F> &r, F *losses) {
  typedef Vector<F> V;
  const Outcomes<F> outcomes(r.call.label_smoothing);
  const auto target = Domain<F>::fractions(r.call, r.call.target_dtype);
  const V none{}, f = set(F(r.factor)), keep = set(F(r.factor * (1 - r.call.label_smoothing))), infinite = set(INF<F>);
  const bool for_target = r.target_gradient;
  each<F, 3, 3>(r.n, -1, entries(r, losses), [&](auto &in, auto &out, int) __attribute__((always_inline)) {
    V x = in[0], weight = in[2], pos, neg;
    outcomes.of(target(in[1]), pos, neg);
    pos = pos * weight;
    const auto above = x > none;
    const V size = abs(x), e = exp_negative<F>(none - size);
    const Softplus<V> plus = softplus(e);
    const V small_share = e * plus.share;
    const V p = above ? plus.share : small_share, complement = above ? small_share : plus.share;
    out[0] = fma(pos + neg, plus.log, weighted(above ? neg : pos, size));
    out[1] = fma(neg, p, none - pos * complement) * f;
    if (for_target) {
      V of_pos = plus.log + (above ? none : size), of_neg = plus.log + (above ? size : none);
      of_pos = pos == none && of_pos == infinite ? none : of_pos;
      of_neg = neg == none && of_neg == infinite ? none : of_neg;
      out[2] = (weight * of_pos - of_neg) * keep;
    }
  });
}

// (2), in double.
static void bernoulli_probabilities(Row<double> &r, double *losses, const Bounds &bounds) {
  typedef Doubles V;
  const Outcomes<double> outcomes(r.call.label_smoothing);
  const V one = set(1.0), none{}, f = set(r.factor), keep = set(r.factor * (1 - r.call.label_smoothing));
  const V low = set(bounds.low), high = set(bounds.high);
  const auto target = Domain<double>::fractions(r.call, r.call.target_dtype);
  const auto pred = Domain<double>::fractions(r.call, r.call.dtype);
  each<double, 3, 3>(r.n, -1, entries(r, losses), [&](auto &in, auto &out, int) __attribute__((always_inline)) {
    V x = pred(in[0]), weight = in[2], pos, neg;
    outcomes.of(target(in[1]), pos, neg);
    pos = pos * weight;
    const Int64s outside = (x < low) | (x > high);
    const V p = x < low ? low : x > high ? high : x;
    V of_pos = none - log<double>(p), of_neg = none - log1p<double>(none - p);
    out[0] = weighted(pos, of_pos) + weighted(neg, of_neg);
    const V gradient = (neg == none ? none : neg / (one - p)) - (pos == none ? none : pos / p);
    out[1] = p != p ? p : outside != Int64s{} ? none : gradient * f;
    of_pos = pos == none && p == none ? none : of_pos;
    of_neg = neg == none && p == one ? none : of_neg;
    out[2] = (weight * of_pos - of_neg) * keep;
  });
}

// (3): p and 1 − p, the losses for and against an outcome, and the derivatives of p and L.
struct FocalEntry {
  Doubles p, complement, of_positive, of_negative, turn, slope;
};
template <class Of> LOSSBRIDGE_INLINE void bernoulli_focal(Row<double> &r, double *losses, const Of &of) {
  typedef Doubles V;
  const Outcomes<double> outcomes(r.call.label_smoothing);
  const Power power(r.call.gamma);
  const V one = set(1.0), none{}, f = set(r.factor), gamma = set(r.call.gamma);
  const auto target = Domain<double>::fractions(r.call, r.call.target_dtype);
  each<double, 3, 3>(r.n, -1, entries(r, losses), [&](auto &in, auto &out, int) __attribute__((always_inline)) {
    V pos, neg, alpha = in[2];
    outcomes.of(target(in[1]), pos, neg);
    const V balance = r.call.balanced ? alpha * pos + (one - alpha) * neg : one;
    const V balanced_pos = balance * pos, balanced_neg = balance * neg;
    const FocalEntry e = of(in[0], balanced_pos, balanced_neg);
    const V loss = weighted(balanced_pos, e.of_positive) + weighted(balanced_neg, e.of_negative);
    out[0] = loss;
    out[1] = e.slope * f;
    if (power.gamma == 0) return;
    const V q = pos * e.complement + neg * e.p, raised = power(q);
    V turn = (neg - pos) * e.turn;
    turn = turn == none ? none : gamma * (raised / q) * turn * loss;
    out[0] = q == none ? none : raised * loss;
    out[1] = q == none ? none : fma(raised, e.slope, turn) * f;
  });
}

static void bernoulli_focal_logits(Row<double> &r, double *losses) {
  const Doubles none{};
  bernoulli_focal(r, losses, [&](Doubles x, Doubles pos, Doubles neg) __attribute__((always_inline)) {
    const auto above = x > none;
    const Doubles size = abs(x), e = exp_negative<double>(none - size);
    const Softplus<Doubles> plus = softplus(e);
    const Doubles small_share = e * plus.share;
    const Doubles p = above ? plus.share : small_share, complement = above ? small_share : plus.share;
    return FocalEntry{p,
                      complement,
                      plus.log + (above ? none : size),
                      plus.log + (above ? size : none),
                      p * complement,
                      fma(neg, p, none - pos * complement)};
  });
}

static void bernoulli_focal_probabilities(Row<double> &r, double *losses, const Bounds &bounds) {
  const Doubles one = set(1.0), none{}, low = set(bounds.low), high = set(bounds.high);
  const auto pred = Domain<double>::fractions(r.call, r.call.dtype);
  bernoulli_focal(r, losses, [&](Doubles given, Doubles pos, Doubles neg) __attribute__((always_inline)) {
    const Doubles x = pred(given);
    const Int64s outside = (x < low) | (x > high);
    const Doubles p = x < low ? low : x > high ? high : x;
    const Doubles slope = (neg == none ? none : neg / (one - p)) - (pos == none ? none : pos / p);
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
