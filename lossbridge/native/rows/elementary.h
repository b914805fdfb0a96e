// exp, log and log1p of vectors, to less than one unit in the last place, and sums in a fixed order. No loss.
//
// 1. exp(d) = 2^n·e^r with n = round(d / log 2) and r = d − n·log 2, |r| ≤ .35, exact by fused multiply-add but for one
//    rounding. e^r is a polynomial: in float a minimax one of degree 6 (error 2^-27), in double Taylor's of degree 13.
// 2. Exponentials of a row are counted in units of 2^(M − UP) with M = round(m / log 2), m the row's maximum: the unit
//    goes into n, and nothing is subtracted from d, so that nothing is rounded. From |m| = FAR on the unit is e^m·2^-UP
//    and z − m is subtracted first: that is exact for all z that count, because they lie within a factor 2 of m. UP
//    keeps the smallest that count away from subnormal numbers.
// 3. log(x) of x = 2^e·(1 + f), 1 + f in [√½, √2): with s = f/(2 + f), log(1 + f) = f − (f²/2 − s·(f²/2 + R)),
//    R = Σ_{k≥1} 2/(2k+1)·s^(2k).
// 4. log1p(x) = log(u) + (x − (u − 1))/u of the rounded u = 1 + x, whose rounding error x − (u − 1) is exact.
// 5. A sum has 32 lanes on every instruction set. In each, four numbers are added, and these sums in double (of floats)
//    or in two doubles (of doubles): longer sums of equal numbers would round the same way again and again.
#pragma once
#include "vectors.h"

namespace lossbridge {
namespace LOSSBRIDGE_NS {

template <class F> struct Numbers;
template <> struct Numbers<float> {
  static constexpr int MANTISSA = 23, UP = 60;
  static constexpr float LOG2E = 0x1.715476p+0f, LN2_HIGH = 0x1.62e43p-1f, LN2_LOW = -0x1.05c61p-29f;
  static constexpr float MAGIC = 0x1.8p23f;  // a number this large has no fraction, and an integer in its last bits
  static constexpr float FAR = 208, LOWEST = -125;  // e^LOWEST is 0 in float
  static constexpr int32_t SQRT_HALF = 0x3f3504f3;
  static constexpr int LOG_TERMS = 5;
};
template <> struct Numbers<double> {
  static constexpr int MANTISSA = 52, UP = 500;
  static constexpr double LOG2E = 0x1.71547652b82fep+0, LN2_HIGH = 0x1.62e42fefa39efp-1, LN2_LOW = 0x1.abc9e3b39803fp-56;
  static constexpr double MAGIC = 0x1.8p52;
  static constexpr double FAR = 1500, LOWEST = -748;
  static constexpr int64_t SQRT_HALF = 0x3fe6a09e667f3bcd;
  static constexpr int LOG_TERMS = 10;
};

// (1)

LOSSBRIDGE_INLINE Floats exp_of_remainder(Floats r) {
  Floats p = fma(set(0x1.6a108p-10f), r, set(0x1.1245c8p-7f));
  p = fma(p, r, set(0x1.55593cp-5f));
  p = fma(p, r, set(0x1.555482p-3f));
  p = fma(p, r, set(0x1.fffffcp-2f));
  p = fma(p, r, set(1.0f));
  return fma(p, r, set(1.0f));
}
LOSSBRIDGE_INLINE Doubles exp_of_remainder(Doubles r) {
  double factorial = 6227020800.0;  // 13!
  Doubles p = set(1 / factorial);
  for (int n = 12; n >= 0; n--) {
    factorial /= n + 1;
    p = fma(p, r, set(1 / factorial));
  }
  return p;
}

// What the exponentials of a row are counted in (2).
template <class F> struct Unit {
  F shift;  // subtracted first
  int exponent;
  F magic;
  F lowest;  // what is below counts as 0
  Unit() : shift(0), exponent(0), magic(Numbers<F>::MAGIC + F(Numbers<F>::UP)), lowest(Numbers<F>::LOWEST) {}  // of m = 0
  explicit Unit(F m) : Unit() {
    if (std::fabs(m) < Numbers<F>::FAR) {
      exponent = int(std::nearbyint(m * Numbers<F>::LOG2E));
      magic -= F(exponent);
      lowest += m;
    } else {
      shift = m;
    }
  }
};

// exp(z + low) in a unit; `low`, if there, is what rounding has left of z. 0 where that is 0 beside the row's maximum, −∞
// too.
template <class V, class F, class... Low> LOSSBRIDGE_INLINE V exp_in(const Unit<F> &unit, V z, Low... low) {
  typedef Numbers<F> N;
  V d = z - set(unit.shift), t = fma(d, set(N::LOG2E), set(unit.magic)), n = t - set(unit.magic);
  V r = fma(n, set(-N::LN2_HIGH), d);
  r = (fma(n, set(-N::LN2_LOW), r) + ... + low);
  V e = bits<V>(bits<Integers<F>>(exp_of_remainder(r)) + (bits<Integers<F>>(t) << N::MANTISSA));
  return d < set(unit.lowest) ? V{} : e;
}

// exp(d + low) for d ≤ 0; 0 where that is below the normal numbers.
template <class F, class... Low> LOSSBRIDGE_INLINE Vector<F> exp_negative(Vector<F> d, Low... low) {
  return exp_in(Unit<F>(), d, low...) * set(F(std::numeric_limits<F>::min_exponent < -1000 ? 0x1p-500 : 0x1p-60));
}

// e^d and 1 − e^d for d ≤ 0, each with all its digits: 1 − e^d = (1 − 2^n) − 2^n (e^r − 1).
LOSSBRIDGE_INLINE void exp_and_complement(Doubles d, Doubles &e, Doubles &complement) {
  typedef Numbers<double> N;
  const Doubles lowest = set(-708.0), magic = set(N::MAGIC), one = set(1.0), none{};
  const Int64s gone = d < lowest;
  d = gone ? lowest : d;
  const Doubles t = fma(d, set(N::LOG2E), magic), n = t - magic;
  const Doubles r = fma(n, set(-N::LN2_LOW), fma(n, set(-N::LN2_HIGH), d));
  double factorial = 6227020800.0;  // 13!
  Doubles p = set(1 / factorial);
  for (int k = 13; k >= 2; k--) {
    factorial /= k;
    p = fma(p, r, set(1 / factorial));
  }
  const Doubles scale = bits<Doubles>(bits<Int64s>(one) + ((bits<Int64s>(t) - bits<Int64s>(magic)) << N::MANTISSA)), q = p * r;
  e = gone ? none : fma(scale, q, scale);
  complement = (one - scale) - scale * q;
}

// log(x) + also of positive, normal, finite x (3), where `also` is small.
template <class F> LOSSBRIDGE_INLINE Vector<F> log_normal(Vector<F> x, Vector<F> also = Vector<F>{}) {
  typedef Numbers<F> N;
  typedef Vector<F> V;
  Integers<F> i = bits<Integers<F>>(x), exponent = (i - N::SQRT_HALF) >> N::MANTISSA;
  V e = __builtin_convertvector(exponent, V), f = bits<V>(i - (exponent << N::MANTISSA)) - set(F(1));
  V s = f / (f + set(F(2))), z = s * s, half = set(F(.5)) * f * f, r = V{};
  for (int k = N::LOG_TERMS; k >= 1; k--) r = fma(r, z, set(F(2) / F(2 * k + 1)));
  r = r * z;
  V low = fma(e, set(N::LN2_LOW), also) + s * (half + r);
  return fma(e, set(N::LN2_HIGH), f - (half - low));
}

// log of x ≥ 0.
template <class F> LOSSBRIDGE_INLINE Vector<F> log(Vector<F> x) {
  typedef Vector<F> V;
  V least = set(std::numeric_limits<F>::min());
  Integers<F> subnormal = x < least;
  F up = F(1 << 30) * F(1 << 30);
  V y = log_normal<F>(subnormal ? x * set(up) : x);
  y = subnormal ? y - set(F(60 * 0.69314718055994530942)) : y;
  y = x == V{} ? set(-INF<F>) : y;
  return x == set(INF<F>) || x != x ? x : y;
}

// log(1 + x) of x ≥ −1 (4).
template <class F> LOSSBRIDGE_INLINE Vector<F> log1p(Vector<F> x) {
  typedef Vector<F> V;
  V one = set(F(1)), u = one + x, lost = x < one ? x - (u - one) : one - (u - x);
  V y = log_normal<F>(u, lost / u);
  y = u == V{} ? set(-INF<F>) : y;
  return x < set(INF<F>) ? y : x;
}

// log(1 + e) and 1/(1 + e) of e in [0, 1]. In float with one division, which takes most of the time: log(1 + e) =
// 2 Σ s^(2k+1)/(2k+1), s = e/(2 + e).
template <class V> struct Softplus {
  V log, share;
};
LOSSBRIDGE_INLINE Softplus<Floats> softplus(Floats e) {
  const Floats one = set(1.0f), two = set(2.0f);
  Floats d = one / ((one + e) * (two + e)), s = e * (one + e) * d, z = s * s, r{};
  for (int k = 8; k >= 1; k--) r = fma(r, z, set(2.0f / float(2 * k + 1)));
  return {fma(s * z, r, s + s), (two + e) * d};
}
LOSSBRIDGE_INLINE Softplus<Doubles> softplus(Doubles e) { return {log1p<double>(e), set(1.0) / (set(1.0) + e)}; }

// Of one number.
LOSSBRIDGE_INLINE double log1p_of(double x) { return log1p<double>(set(x))[0]; }
LOSSBRIDGE_INLINE double log_of(double x) { return log<double>(set(x))[0]; }
template <class F> LOSSBRIDGE_INLINE F exp_of(const Unit<F> &unit, F z) { return exp_in(unit, set(z))[0]; }

// Sums (5).

// hi + lo += x, without a rounding error but in lo.
LOSSBRIDGE_INLINE void add_exactly(Doubles &hi, Doubles &lo, Doubles x) {
  Doubles s = hi + x, v = s - hi;
  lo += (hi - (s - v)) + (x - v);
  hi = s;
}

template <class F> struct Sum;

template <> struct Sum<float> {
  static constexpr int PARTS = LANES / WIDTH<float>;
  Floats part[PARTS] = {};
  Doubles whole[2 * PARTS] = {};

  LOSSBRIDGE_METHOD void flush() {
    for (int u = 0; u < PARTS; u++) {
      for (int h = 0; h < 2; h++) whole[2 * u + h] += half_as_doubles(part[u], h);
      part[u] = Floats{};
    }
  }
  double total() const {
    double lanes[LANES];
    memcpy(lanes, whole, sizeof lanes);
    for (int half = LANES / 2; half >= 1; half /= 2)
      for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
  }
};

template <> struct Sum<double> {
  static constexpr int PARTS = LANES / WIDTH<double>;
  Doubles part[PARTS] = {};
  Doubles whole[PARTS] = {}, lost[PARTS] = {};

  LOSSBRIDGE_METHOD void flush() {
    for (int u = 0; u < PARTS; u++) {
      add_exactly(whole[u], lost[u], part[u]);
      part[u] = Doubles{};
    }
  }
  double total() const {
    double lanes[LANES], errors[LANES];
    memcpy(lanes, whole, sizeof lanes);
    memcpy(errors, lost, sizeof errors);
    for (int half = LANES / 2; half >= 1; half /= 2)
      for (int i = 0; i < half; i++) {
        double a = lanes[i], b = lanes[i + half], s = a + b, v = s - a;
        errors[i] += errors[i + half] + ((a - (s - v)) + (b - v));
        lanes[i] = s;
      }
    return lanes[0] - lanes[0] == 0 ? lanes[0] + errors[0] : lanes[0];
  }
};

// Arrays of n numbers that a body reads and writes, vector by vector. A null array that is read is `fill` everywhere; one
// that is written is not.
template <class F, int IN, int OUT> struct Arrays {
  const F *in[IN];
  F fill[IN];
  F *out[OUT];
};

// body(in, out, u) for each vector of the arrays, in order; u is its place in the lanes, and it adds to sum.part[u]. The
// sums are flushed after four. Lanes past the end, and the number at `without` (−1: none), are `fill` to the body.
template <class F, int IN, int OUT, class Body, class... Sums>
LOSSBRIDGE_INLINE void each(int64_t n, int64_t without, const Arrays<F, IN, OUT> &a, const Body &body, Sums &...sums) {
  typedef Vector<F> V;
  constexpr int W = WIDTH<F>, PARTS = LANES / W;
  auto lanes = [&](int64_t j) __attribute__((always_inline)) {
    for (int u = 0; u < PARTS; u++) {
      V in[IN], out[OUT] = {};
      for (int i = 0; i < IN; i++) in[i] = a.in[i] ? load<V>(a.in[i] + j + u * W) : set(a.fill[i]);
      body(in, out, u);
      for (int o = 0; o < OUT; o++)
        if (a.out[o]) store(a.out[o] + j + u * W, out[o]);
    }
  };
  auto some = [&](int64_t j, int64_t end) __attribute__((always_inline)) {
    for (; j + 4 * LANES <= end; j += 4 * LANES) {
      for (int k = 0; k < 4; k++) lanes(j + k * LANES);
      (sums.flush(), ...);
    }
    for (; j < end; j += LANES) lanes(j);
    (sums.flush(), ...);
  };
  // Lanes that hold something to leave out.
  auto partly = [&](int64_t j) __attribute__((always_inline)) {
    for (int u = 0; u < PARTS; u++, j += W) {
      const Integers<F> out_of_place = places<F>() == Integers<F>{} + (decltype(Integers<F>{}[0] + 0))(without - j);
      V in[IN], out[OUT] = {};
      for (int i = 0; i < IN; i++) {
        const V all = set(a.fill[i]), some = a.in[i] ? load_some(a.in[i] + j, n - j, all) : all;
        in[i] = out_of_place ? all : some;
      }
      body(in, out, u);
      for (int o = 0; o < OUT; o++)
        if (a.out[o]) store_some(a.out[o] + j, n - j, out[o]);
    }
    (sums.flush(), ...);
  };
  // In one loop, so that all is inlined once, and the sums stay in registers.
  const int64_t full = n / LANES * LANES, place = without < 0 ? full : without / LANES * LANES;
  for (int64_t j = 0, next; j < n; j = next + LANES) {
    next = place >= j ? place : full;
    some(j, next);
    if (next < n) partly(next);
  }
}

template <class F> static double sum(const F *x, int64_t n, int64_t without) {
  Sum<F> s;
  each<F, 1, 1>(n, without, {{x}, {0}, {nullptr}}, [&](auto &in, auto &, int u) __attribute__((always_inline)) {
    s.part[u] += in[0];
  }, s);
  return s.total();
}

}  // namespace LOSSBRIDGE_NS
}  // namespace lossbridge
