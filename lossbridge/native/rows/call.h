// A call of the rows: what is computed, of which arrays, into which. Plain data, without a framework.
#pragma once
#include <cstdint>

namespace lossbridge {

// The rules of lossbridge/maths, by their numbers in lossbridge/native/rows.py.
enum class Rule : int32_t {
  SOFTMAX_LABELS = 0,               // logits and labels
  SOFTMAX_DISTRIBUTIONS = 1,        // logits and distributions
  PROBABILITIES_LABELS = 2,         // probabilities, renormalised and clipped, and labels
  PROBABILITIES_DISTRIBUTIONS = 3,  // and distributions
  LOG_LOSS = 4,                     // probabilities, clipped, and labels
  SOFTMAX_FOCAL = 5,
  PROBABILITIES_FOCAL = 6,
  BERNOULLI_LOGITS = 7,
  BERNOULLI_PROBABILITIES = 8,
  BERNOULLI_FOCAL_LOGITS = 9,
  BERNOULLI_FOCAL_PROBABILITIES = 10,
  DIVERGENCE_LOGITS = 11,
  DIVERGENCE_PROBABILITIES = 12,
  MASS_LABELS = 13,  // what a sample counts by its class weights: no loss, and its gradient is 0
  MASS_DISTRIBUTIONS = 14,
  JENSEN_SHANNON_LOGITS = 15,
  TOTAL_VARIATION_LOGITS = 16,
};

enum class Dtype : int32_t { FLOAT32 = 0, FLOAT64 = 1, FLOAT16 = 2, BFLOAT16 = 3, INT32 = 4, INT64 = 5 };

// What the sum of the losses is divided by.
enum class Divisor : int32_t {
  NONE = 0,     // there is no sum, only the losses
  COUNTED = 1,  // the number of samples that count
  WEIGHTS = 2,  // the sum of their weights
  GIVEN = 3,    // `divisor`
};

// Predictions have the shape (outer, classes, inner) and lie in C order; there are outer·inner samples. With
// `elementwise`, which only Bernoulli rules have, each of the outer·classes·inner entries is a sample. Arrays "of the
// result" are float64 where the predictions are, else float32. What may be null says so.
struct Call {
  Rule rule;
  Dtype dtype;         // of the predictions and their gradient
  Dtype target_dtype;  // labels: INT32 or INT64
  bool elementwise;
  int64_t outer, classes, inner;
  const void *pred, *target;

  // The rule's options; those that a rule lacks are ignored.
  double label_smoothing, epsilon, temperature, gamma;
  double logit_scale, softcap, z_loss;  // of softmax of labels and of distributions; softcap 0: none
  double beta, mixture_scaling;         // of the Jensen-Shannon divergence: β, and what G is multiplied by
  double per_class_number;  // pos_weight or alpha, where it is one number
  const void *per_class;    // class_weight, pos_weight or alpha of each class, of the result; or null
  bool balanced;            // binary focal: alpha counts
  bool domain;              // what lies outside the rule's domain makes its sample NaN

  // The samples: of the result, outer·inner; or null.
  const uint8_t *counted;  // false: masked or ignored, not read; loss and gradient are 0
  const void *weight;      // multiplies the losses; a sample of weight 0 is not read
  Divisor divides;
  double divisor;
  double upstream;            // what flows back to the result, or without a sum to every loss
  const void *upstream_each;  // times this for every sample, or null

  // Written.
  void *losses;           // l·w of each sample, of the result; or null
  void *result;           // one number: Σ l·w / D, 0 where D = 0; or null
  void *gradient;         // for the predictions, of their shape and dtype, may be `pred` itself; or null
  void *target_gradient;  // for the target, of its shape and dtype; or null, as it must be without has_target_gradient
  int32_t threads;
};

// The rules that have a gradient for the target: WITH_TARGET_GRADIENT in rows.py.
inline bool has_target_gradient(Rule rule) {
  return rule == Rule::SOFTMAX_DISTRIBUTIONS || rule == Rule::BERNOULLI_LOGITS ||
         rule == Rule::BERNOULLI_PROBABILITIES || rule == Rule::DIVERGENCE_LOGITS ||
         rule == Rule::DIVERGENCE_PROBABILITIES || rule == Rule::JENSEN_SHANNON_LOGITS ||
         rule == Rule::TOTAL_VARIATION_LOGITS;
}

// Bytes of scratch memory that a thread needs.
int64_t scratch_bytes(const Call &);
// Computes the samples; returns nothing, because nothing can fail.
void run(const Call &);

}  // namespace lossbridge
