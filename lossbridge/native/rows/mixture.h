// Rows of the divergences that a mixture bounds, in double; the numbers in brackets are those of
// lossbridge/maths/mixture.py.
//
// Of logits z (target) and x, t = softmax(z/T), p = softmax(x/T). By (2) one of them is o, the other q, with the smaller
// part b of m = b o + (1 − b) q:
//
// 1. d_j = log(o_j/q_j) = (z_j − x_j − (z_top − x_top))/T − c of o = t, all differences with their rounding errors, and
//    c = log Σ e^((z − z_top)/T) − log Σ e^((x − x_top)/T). c has the rounding errors of two sums, by the same η for the
//    whole row. It counts to second order in JS, and to first order in the total variation. Where it would be seen it is
//    measured, Σ q (e^(d + η) − 1) = e^η − 1, and taken out.
// 2. Near each other, |d| < 1, o − q = q (e^d − 1), e^d = 1 + d + d² R(d).
//    Of logits that are no doubles, a double has so many digits more that |d| < 1/8 is near enough, and series end
//    earlier: `Long` and `Short`.
// 3. G = −Σ (o u_o/(1 − b) + q u_q/b) with u_o = log(m/o), u_q = log(m/q) = u_o + d: where m < 2 q, u_q comes from m/q and
//    u_o by d, else the other way round, so that neither cancels. Near each other G is (3) of there, with
//    q h(e^d − 1) = q d² (1 + d R(d) − R(d)) and q h(μ − 1) = m u_q − (m − q).
// 4. log(m/n) = e log 2 + 2 artanh s, s = (m' − n)/(m' + n) of m' = m/2^e near n, |s| ≤ 1/5, 2 artanh s = 2 s (1 + s² H),
//    H = 1/3 + s²/5 + …. Where e is 0, m − n is a part of what is known without cancellation, the logarithm is divided by
//    that part before it can be too small, and m log(m/n) − (m − n) = (m − n) s (1 + (1 + s) s H).
// 5. Gradients by (5) and (6): with k the largest class of the side r, and v the other, E = v_k/r_k,
//    ∂G/∂r_j − ∂G/∂r_k = −log(m_j/(r_j μ_k))/part, μ_k = (m/r)_k, and m_j − r_j μ_k = part (v_j − E r_j).
//    v_j − E r_j = r_j E (e^s − 1) where s = log(v_j/r_j) − log(v_k/r_k), which needs no c, is small.
// 6. At the ends of β the rows are those of the Kullback-Leibler divergence.
//
// Total variation: (7) of there.
#pragma once
#include "divergence.h"

namespace lossbridge {
namespace LOSSBRIDGE_NS {

// Shares are counted in 2^-500, so that none that counts is subnormal, nor what β of it is.
constexpr double SHARE_UP = 0x1p500, SHARE_DOWN = 0x1p-500;

// What is near (2), and how many terms R and H have then.
struct Long {
  static constexpr double NEAR = 1;
  static constexpr int R_TERMS = 18, H_TERMS = 10;
};
struct Short {
  static constexpr double NEAR = .125;
  static constexpr int R_TERMS = 8, H_TERMS = 6;
};

// R(d) = (e^d − 1 − d)/d² = 1/2! + d/3! + … where |d| is near (2).
template <class Digits> LOSSBRIDGE_INLINE Doubles growth(Doubles d) {
  double factorial = 1;
  for (int n = 2; n <= Digits::R_TERMS + 1; n++) factorial *= n;
  Doubles q = set(1 / factorial);
  for (int n = Digits::R_TERMS + 1; n >= 3; n--) {
    factorial /= n;
    q = fma(q, d, set(1 / factorial));
  }
  return q;
}
template <class Digits> LOSSBRIDGE_INLINE Doubles expm1_of_near(Doubles d) { return fma(d * d, growth<Digits>(d), d); }

// A side of the divergence: a softmax.
struct Softmax {
  const double *logits;
  double *e;  // exponentials: the share of a class is e·share
  int64_t top;
  double top_logit, share, log_sum;  // log Σ e^((logit − top_logit)/T)
  Softmax(const double *x, const Peak<double> &peak, double *e, double *room, int64_t n, const Temperature<double> &over)
      : e(e), top(peak.place) {
    const NearZero<double> near(x, peak.value, over.T, room, n);
    logits = near.logits, top_logit = peak.value - near.subtracted;
    const Unit<double> unit(top_logit / over.T);
    Sum<double> sum;
    each<double, 1, 1>(n, -1, {{logits}, {-INF<double>}, {e}},
                       [&](auto &in, auto &out, int u) __attribute__((always_inline)) {
                         out[0] = over.exponential(unit, in[0]);
                         sum.part[u] += out[0];
                       },
                       sum);
    const double total = sum.total();
    share = SHARE_UP / total;
    log_sum = log_of(total * SHARE_DOWN) + less(unit, top_logit, over.T);  // Unit::UP of double is 500
  }
};

static Difference<Doubles> together(Difference<double> offset, double centre) {
  const Difference<double> sum = difference(offset.high, -centre);
  return {set(sum.high), set(sum.low + offset.low)};
}

// log(o/q) of two logits; `off` is taken out (1).
struct LogOfRatio {
  Difference<Doubles> middle;
  Doubles inverse;
  LogOfRatio(const Softmax &o, const Softmax &q, const Temperature<double> &over, double off = 0)
      : middle(together(difference(o.top_logit, q.top_logit), (o.log_sum - q.log_sum) * over.T)),
        inverse(set(over.inverse)) {
    middle.low = middle.low + set(off * over.T);
  }
  LOSSBRIDGE_METHOD Doubles operator()(Doubles of_o, Doubles of_q) const {
    return difference_less(of_o, of_q, middle) * inverse;
  }
};

// Shares of a class and d. What one side lacks has no d.
template <class Digits> struct Pair {
  Doubles o, q, d;
  Int64s near;
  LOSSBRIDGE_METHOD Pair(Doubles o, Doubles q, Doubles log_of_ratio) : o(o), q(q) {
    const Int64s both = (o > Doubles{}) & (q > Doubles{});
    d = both ? log_of_ratio : Doubles{};
    near = both & (abs(d) < set(Digits::NEAR));
  }
  LOSSBRIDGE_METHOD Doubles gap() const { return near ? q * expm1_of_near<Digits>(d) : o - q; }
};

// body(pair, out, u) for each vector of classes; of lanes past the end, and at `without`, no side has a share.
template <class Digits, class Body, class... Sums>
LOSSBRIDGE_INLINE void each_pair(int64_t n, int64_t without, const Softmax &o, const Softmax &q, const LogOfRatio &ratio,
                                 double *to, const Body &body, Sums &...sums) {
  const Doubles share_o = set(o.share), share_q = set(q.share);
  each<double, 4, 1>(n, without, {{o.logits, q.logits, o.e, q.e}, {0, 0, 0, 0}, {to}},
                     [&](auto &in, auto &out, int u) __attribute__((always_inline)) {
                       body(Pair<Digits>(in[2] * share_o, in[3] * share_q, ratio(in[0], in[1])), out, u);
                     },
                     sums...);
}

// η (1).
template <class Digits> static double rounding(int64_t n, const Softmax &o, const Softmax &q, const LogOfRatio &ratio) {
  Sum<double> gaps;
  each_pair<Digits>(
      n, -1, o, q, ratio, nullptr,
      [&](const Pair<Digits> &pair, auto &, int u) __attribute__((always_inline)) { gaps.part[u] += pair.gap(); }, gaps);
  return log1p_of(gaps.total() * SHARE_DOWN);
}

// Part of a mixture: its own digits however small it is.
struct Part {
  Doubles part, inverse;
  explicit Part(double part) : part(set(part)), inverse(set(1 / (part * SHARE_UP))) {}
  LOSSBRIDGE_METHOD Doubles divides(Doubles x) const { return x * inverse * set(SHARE_UP); }
};

// log(m/n) of m = n + part·excess (4), and r·log(m/n)/part. Where `alike`, log(m/n) = 2 s (1 + s² H).
template <class Digits> struct LogOfMixture {
  Doubles log, divided, s, H;
  Int64s alike;
  LOSSBRIDGE_METHOD LogOfMixture(Doubles m, Doubles n, Doubles excess, Doubles part, const Part &of_divided, Doubles r) {
    typedef Numbers<double> N;
    const Int64s e = (bits<Int64s>(m) - bits<Int64s>(n) + (int64_t(1) << (N::MANTISSA - 1))) >> N::MANTISSA;
    const Doubles near_n = bits<Doubles>(bits<Int64s>(m) - (e << N::MANTISSA)), difference = near_n - n;
    const Doubles exponent = __builtin_convertvector(e, Doubles);
    alike = e == Int64s{};
    const Doubles ratio = (alike ? excess : difference) / (near_n + n), twice = ratio + ratio;
    s = alike ? part * ratio : ratio;
    const Doubles z = s * s;
    H = set(1.0 / (2 * Digits::H_TERMS + 1));
    for (int k = Digits::H_TERMS - 1; k >= 1; k--) H = fma(H, z, set(1.0 / (2 * k + 1)));
    const Doubles of_ratio = fma(twice, z * H, twice);
    const Doubles far = fma(exponent, set(N::LN2_HIGH), fma(exponent, set(N::LN2_LOW), of_ratio));
    log = alike ? part * of_ratio : far;
    divided = alike ? r * of_ratio : of_divided.divides(r) * far;
  }
};

// G (3)
template <class Digits>
static double generalised(int64_t n, const Softmax &o, const Softmax &q, const LogOfRatio &ratio, double b) {
  typedef Doubles V;
  const V one = set(1.0), none{}, rest = set(1 - b), over_rest = set(1 / (1 - b));
  const Part part(b);
  Sum<double> terms;
  const auto add = [&](const Pair<Digits> &pair, auto &, int u) __attribute__((always_inline)) {
    const V o = pair.o, q = pair.q, d = pair.d, R = growth<Digits>(d);
    const V gap = pair.near ? q * fma(d * d, R, d) : o - q, m = fma(part.part, o, rest * q);
    const Int64s by_q = m < q + q;
    const LogOfMixture<Digits> of_m(m, by_q ? q : o, by_q ? gap : m - o, by_q ? part.part : one, part, q);
    const V of_q = by_q ? of_m.log : of_m.log + d, of_o = by_q ? of_m.log - d : of_m.log;
    const V q_part = by_q ? of_m.divided : part.divides(q) * of_q;
    const V of_alike = gap * of_m.s * fma((one + of_m.s) * of_m.s, of_m.H, one), back = fma(gap, of_q, q_part - gap);
    const V convex = q * d * d * fma(d, R, one - R) - (of_m.alike ? of_alike : back);
    const V far = none - fma(o * of_o, over_rest, q_part);
    terms.part[u] += pair.near ? convex * over_rest : (o == none) & (q == none) ? none : far;
  };
  each_pair<Digits>(n, -1, o, q, ratio, nullptr, add, terms);
  return terms.total() * SHARE_DOWN;
}

// r (∂G/∂r − ∂G/∂r_k) (5); returns their sum. `of_r` and `of_other` are the parts of the sides in m.
template <class Digits>
static double by_side(int64_t n, const Softmax &r, const Softmax &other, const Temperature<double> &over, double of_r,
                      double of_other, double *to) {
  typedef Doubles V;
  const int64_t k = r.top;
  const double ratio_k = (other.e[k] * other.share) / (r.e[k] * r.share);
  const Difference<double> of_k = difference(other.logits[k], r.logits[k]);
  const Difference<V> from{set(of_k.high), set(of_k.low)};
  const V inverse = set(over.inverse), share_r = set(r.share), share_other = set(other.share), none{};
  const V ratio = set(ratio_k), mu = set(std::fma(of_other, ratio_k, of_r)), rest = set(of_r);
  const Part part(of_other);
  Sum<double> sum;
  each<double, 4, 1>(n, -1, {{r.logits, other.logits, r.e, other.e}, {0, 0, 0, 0}, {to}},
                     [&](auto &in, auto &out, int u) __attribute__((always_inline)) {
                       const V own = in[2] * share_r;
                       const Pair<Digits> pair(in[3] * share_other, own, difference_less(in[1], in[0], from) * inverse);
                       const V like_k = own * ratio;
                       const V excess = pair.near ? like_k * expm1_of_near<Digits>(pair.d) : pair.o - like_k;
                       const V m = fma(part.part, pair.o, rest * own);
                       const LogOfMixture<Digits> of_m(m, own * mu, excess, part.part, part, own);
                       const V found = own == none ? none : (none - of_m.divided) * set(SHARE_DOWN);
                       sum.part[u] += found;
                       out[0] = found;
                     },
                     sum);
  return sum.total();
}

// T² G times its scaling. Gradients T r (∂G/∂r_j − Σ r ∂G/∂r) times that.
template <class Digits> static double jensen_shannon(Row<double> &r) {
  const double beta = r.call.beta, scaling = r.call.mixture_scaling, b = beta <= .5 ? beta : 1 - beta;
  const Peak<double> top_z = peak(r.target, r.n), top_x = peak(r.x, r.n);
  if (!top_z.finite() || !top_x.finite()) return no_loss(r, NOT_A_NUMBER<double>);
  if (scaling == 0) {
    no_loss(r, 0);  // the gradients
    return 0;
  }
  if (beta == 0) return divergence_logits(r);
  if (beta == 1) {
    Row<double> exchanged = r;
    exchanged.x = r.target, exchanged.target = r.x;
    exchanged.gradient = r.target_gradient, exchanged.target_gradient = r.gradient;
    return divergence_logits(exchanged);
  }
  const Temperature<double> over(r.call.temperature);
  const Softmax t(r.target, top_z, r.spare[0], r.spare[3], r.n, over), p(r.x, top_x, r.spare[1], r.spare[4], r.n, over);
  const Softmax &o = beta <= .5 ? t : p, &q = beta <= .5 ? p : t;
  const LogOfRatio ratio(o, q, over);
  double found = generalised<Digits>(r.n, o, q, ratio, b);
  if (found != 0 && found < (r.call.dtype == Dtype::FLOAT64 ? 1e-15 : 1e-22))
    found = generalised<Digits>(r.n, o, q, LogOfRatio(o, q, over, rounding<Digits>(r.n, o, q, ratio)), b);
  const double f = r.factor * over.T * scaling;
  double *const of_target = r.spare[2];  // until z and x have been read, over which gradients may go
  const double sum_t = r.target_gradient ? by_side<Digits>(r.n, t, p, over, beta, 1 - beta, of_target) : 0;
  if (r.gradient) {
    const double sum_p = by_side<Digits>(r.n, p, t, over, 1 - beta, beta, r.gradient);
    scale(r.gradient, f, p.e, -f * sum_p * (p.share * SHARE_DOWN), r.gradient, r.n);
  }
  if (r.target_gradient) scale(of_target, f, t.e, -f * sum_t * (t.share * SHARE_DOWN), r.target_gradient, r.n);
  return over.T * over.T * scaling * found;
}

// The derivative of ½ Σ |gap| by the logits of a side, times f: r_j (± 1 − Σ ± r)/2, without cancellation.
static void by_side(int64_t n, const Softmax &r, const double *gaps, double f, double *to) {
  typedef Doubles V;
  const V none{}, share = set(r.share * SHARE_DOWN);
  Sum<double> more, less, same;
  each<double, 2, 1>(n, -1, {{r.e, gaps}, {0, 0}, {nullptr}},
                     [&](auto &in, auto &, int u) __attribute__((always_inline)) {
                       const V own = in[0] * share;
                       more.part[u] += in[1] > none ? own : none;
                       less.part[u] += in[1] < none ? own : none;
                       same.part[u] += in[1] == none ? own : none;
                     },
                     more, less, same);
  const double over = more.total(), under = less.total(), rest = same.total();
  const V of_more = set(2 * under + rest), of_less = set(-2 * over - rest), of_same = set(under - over), by = set(.5 * f);
  each<double, 2, 1>(n, -1, {{r.e, gaps}, {0, 0}, {to}}, [&](auto &in, auto &out, int) __attribute__((always_inline)) {
    out[0] = in[0] * share * (in[1] > none ? of_more : in[1] < none ? of_less : of_same) * by;
  });
}

// T² ½ Σ |t − p|
template <class Digits> static double total_variation(Row<double> &r) {
  const Peak<double> top_z = peak(r.target, r.n), top_x = peak(r.x, r.n);
  if (!top_z.finite() || !top_x.finite()) return no_loss(r, NOT_A_NUMBER<double>);
  const Temperature<double> over(r.call.temperature);
  const Softmax t(r.target, top_z, r.spare[0], r.spare[3], r.n, over), p(r.x, top_x, r.spare[1], r.spare[4], r.n, over);
  double *const gaps = r.spare[2];
  const bool leads = t.e[t.top] * t.share > .5 * SHARE_UP;  // whose gap is minus the sum of the others'
  const auto distance = [&](const LogOfRatio &ratio) {
    Sum<double> sum, all;
    each_pair<Digits>(r.n, leads ? t.top : -1, t, p, ratio, gaps,
                      [&](const Pair<Digits> &pair, auto &out, int u) __attribute__((always_inline)) {
                        out[0] = pair.gap();
                        sum.part[u] += out[0];
                        all.part[u] += abs(out[0]);
                      },
                      sum, all);
    if (leads) gaps[t.top] = -sum.total();
    return .5 * SHARE_DOWN * (all.total() + (leads ? std::fabs(gaps[t.top]) : 0));
  };
  const LogOfRatio ratio(t, p, over);
  double found = distance(ratio);
  if (found != 0 && found < (r.call.dtype == Dtype::FLOAT64 ? .25 : 1e-8))
    found = distance(LogOfRatio(t, p, over, rounding<Digits>(r.n, t, p, ratio)));
  if (r.gradient) by_side(r.n, p, gaps, -r.factor * over.T, r.gradient);
  if (r.target_gradient) by_side(r.n, t, gaps, r.factor * over.T, r.target_gradient);
  return over.T * over.T * found;
}

}  // namespace LOSSBRIDGE_NS
}  // namespace lossbridge
