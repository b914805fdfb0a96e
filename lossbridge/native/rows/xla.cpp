// Calls from XLA's foreign function interface: their buffers and attributes as a `Call` of call.h.
// lossbridge/frameworks/jax_rows.py and jax_ratio.py make them; what is said of arguments and attributes here is said
// there too.
#include "xla.h"

#include <cstring>
#include <new>

#include "rows.h"
#include "samples.h"
#include "units.h"

namespace lossbridge {
namespace {

using namespace xla;

// The rows. The attribute `integers`: an array of these.
enum Integer { RULE, AXIS, BALANCED, DOMAIN, THREADS, ARGUMENTS, RESULTS, INTEGERS };
// The attribute `numbers`.
enum Number {
  LABEL_SMOOTHING, EPSILON, TEMPERATURE, GAMMA, LOGIT_SCALE, SOFTCAP, Z_LOSS, BETA, MIXTURE_SCALING, PER_CLASS_NUMBER, NUMBERS
};

// Which arguments there are besides predictions and target: bits of integers[ARGUMENTS]. They come in this order.
enum Argument { PER_CLASS = 1, COUNTED = 2, UPSTREAM = 4, EXPECTED = 8 };
// And which results.
enum Result { LOSSES = 1, GRADIENT = 2, TARGET_GRADIENT = 4 };

// The ratio. The attribute `integers` is an array of these, and there is no other.
enum RatioInteger { DIVIDES, RATIO_THREADS, RATIO_ARGUMENTS, RATIO_INTEGERS };
// The first argument is the losses, of which the ratio comes, or the zeros of whose shape the shares come.
enum RatioArgument { RATIO_WEIGHT = 1, RATIO_COUNTED = 2, RATIO_DIVISOR = 4, RATIO_SHARES = 8 };

Error *error(const CallFrame &frame, int code, const char *message) {
  ErrorArguments arguments{sizeof(ErrorArguments), nullptr, message, code};
  return frame.api->create_error(&arguments);
}
Error *wrong(const CallFrame &frame, const char *message) { return error(frame, INVALID_ARGUMENT, message); }

// XLA asks when the handler is registered, and refuses a version that it does not support.
Error *tell_version(const CallFrame &frame, MetadataExtension &extension) {
  if (frame.struct_size < sizeof(CallFrame) || extension.base.struct_size < sizeof(MetadataExtension) ||
      extension.metadata->struct_size < sizeof(Metadata) || frame.api->struct_size < sizeof(Api))
    return wrong(frame, "lossbridge knows larger structs than this XLA has");
  extension.metadata->api_version = {sizeof(ApiVersion), nullptr, API_MAJOR, API_MINOR};
  return nullptr;
}

bool to_dtype(DataType type, Dtype *dtype) {
  switch (type) {
    case DataType::F32: *dtype = Dtype::FLOAT32; return true;
    case DataType::F64: *dtype = Dtype::FLOAT64; return true;
    case DataType::F16: *dtype = Dtype::FLOAT16; return true;
    case DataType::BF16: *dtype = Dtype::BFLOAT16; return true;
    case DataType::S32: *dtype = Dtype::INT32; return true;
    case DataType::S64: *dtype = Dtype::INT64; return true;
    default: return false;
  }
}

int64_t product(const int64_t *from, const int64_t *to) {
  int64_t found = 1;
  for (; from != to; from++) found *= *from;
  return found;
}

int64_t bytes(const Buffer &buffer) {
  const int64_t item = buffer.dtype == DataType::F64 ? 8 : buffer.dtype == DataType::F32 ? 4 : 2;
  return item * product(buffer.dims, buffer.dims + buffer.rank);
}

// One buffer after the other.
struct Next {
  const Buffers &buffers;
  int64_t i;
  // The next, if it is there; null too where there are fewer than the caller says.
  const Buffer *take(bool there) {
    if (!there) return nullptr;
    const int64_t at = i++;
    return at < buffers.size ? buffers.buffers[at] : nullptr;
  }
  bool is_at_end() const { return i == buffers.size; }
};

void *data(const Buffer *buffer) { return buffer == nullptr ? nullptr : buffer->data; }

// Of a result: XLA allocates it anew, in pages that nobody has touched.
void *fresh(const Buffer *buffer) {
  if (buffer != nullptr) advise(buffer->data, bytes(*buffer));
  return data(buffer);
}

void set_shape(Call &c, const Buffer &pred, int64_t axis) {
  const int64_t *end = pred.dims + pred.rank;
  c.elementwise = axis < 0;
  c.outer = c.elementwise ? 1 : product(pred.dims, pred.dims + axis);
  c.classes = c.elementwise ? product(pred.dims, end) : pred.dims[axis];
  c.inner = c.elementwise ? 1 : product(pred.dims + axis + 1, end);
}

// The numbers of an attribute that is an array of so many of them; null if it is not.
template <class Number>
const Number *numbers_of(const Attributes &attributes, int64_t which, DataType dtype, size_t size) {
  if (which >= attributes.size || attributes.types[which] != ARRAY) return nullptr;
  const Array &array = *static_cast<const Array *>(attributes.attributes[which]);
  return array.size == size && array.dtype == dtype ? static_cast<const Number *>(array.data) : nullptr;
}
const int64_t *integers_of(const Attributes &attributes, size_t size) {
  return numbers_of<int64_t>(attributes, 0, DataType::S64, size);
}

struct Options {
  const int64_t *integers;
  const double *numbers;
};
bool read(const Attributes &attributes, Options *options) {
  *options = {integers_of(attributes, INTEGERS), numbers_of<double>(attributes, 1, DataType::F64, NUMBERS)};
  return options->integers != nullptr && options->numbers != nullptr;
}
void set_options(Call &c, const Options &options) {
  c.rule = static_cast<Rule>(options.integers[RULE]);
  c.balanced = options.integers[BALANCED] != 0;
  c.domain = options.integers[DOMAIN] != 0;
  c.threads = static_cast<int32_t>(options.integers[THREADS]);
  c.label_smoothing = options.numbers[LABEL_SMOOTHING];
  c.epsilon = options.numbers[EPSILON];
  c.temperature = options.numbers[TEMPERATURE];
  c.gamma = options.numbers[GAMMA];
  c.logit_scale = options.numbers[LOGIT_SCALE];
  c.softcap = options.numbers[SOFTCAP];
  c.z_loss = options.numbers[Z_LOSS];
  c.beta = options.numbers[BETA];
  c.mixture_scaling = options.numbers[MIXTURE_SCALING];
  c.per_class_number = options.numbers[PER_CLASS_NUMBER];
}

Error *execute_rows(const CallFrame &frame) {
  Options options;
  if (!read(frame.attributes, &options) || frame.arguments.size < 2)
    return wrong(frame, "lossbridge's rows are called by another version of lossbridge");
  Next argument{frame.arguments, 0}, result{frame.results, 0};
  const Buffer &pred = *argument.take(true), &target = *argument.take(true);
  const int64_t axis = options.integers[AXIS];
  Call c{};
  if (!to_dtype(pred.dtype, &c.dtype) || !to_dtype(target.dtype, &c.target_dtype) || axis >= pred.rank)
    return wrong(frame, "lossbridge has no rows for these arrays");
  set_options(c, options);
  set_shape(c, pred, axis);
  c.pred = pred.data;
  c.target = target.data;
  const int64_t given = options.integers[ARGUMENTS], wanted = options.integers[RESULTS];
  c.per_class = data(argument.take(given & PER_CLASS));
  c.counted = static_cast<const uint8_t *>(data(argument.take(given & COUNTED)));
  c.upstream_each = data(argument.take(given & UPSTREAM));
  c.upstream = 1;
  const Buffer *expected = argument.take(given & EXPECTED), *written = argument.take(given & EXPECTED);
  const Buffer *losses = result.take(wanted & LOSSES), *gradient = result.take(wanted & GRADIENT);
  const Buffer *target_gradient = result.take(wanted & TARGET_GRADIENT);
  if (!argument.is_at_end() || !result.is_at_end())
    return wrong(frame, "lossbridge's rows are called with other buffers than their attributes say");
  if (written != nullptr && gradient != nullptr && written->data == gradient->data && c.upstream_each != nullptr) {
    // The gradient was written for an upstream that was expected, into the memory that is now the result's.
    const auto size = static_cast<size_t>(samples(c) * result_bytes(c));
    if (std::memcmp(expected->data, c.upstream_each, size) == 0) return nullptr;
  }
  c.losses = fresh(losses);
  c.gradient = fresh(gradient);
  c.target_gradient = fresh(target_gradient);
  run(c);
  return nullptr;
}

Error *execute_ratio(const CallFrame &frame) {
  const int64_t *integers = integers_of(frame.attributes, RATIO_INTEGERS);
  if (integers == nullptr || frame.arguments.size < 1 || frame.results.size != 1)
    return wrong(frame, "lossbridge's ratio is called by another version of lossbridge");
  Next argument{frame.arguments, 0};
  const int64_t given = integers[RATIO_ARGUMENTS];
  const Buffer &losses = *argument.take(true), &result = *frame.results.buffers[0];
  Call c{};
  if (!to_dtype(losses.dtype, &c.dtype) || result.dtype != losses.dtype)
    return wrong(frame, "lossbridge sums no arrays of this dtype");
  c.outer = product(losses.dims, losses.dims + losses.rank);
  c.classes = c.inner = 1;
  c.divides = static_cast<Divisor>(integers[DIVIDES]);
  c.threads = static_cast<int32_t>(integers[RATIO_THREADS]);
  c.weight = data(argument.take(given & RATIO_WEIGHT));
  c.counted = static_cast<const uint8_t *>(data(argument.take(given & RATIO_COUNTED)));
  const void *divisor = data(argument.take(given & RATIO_DIVISOR));
  if (!argument.is_at_end()) return wrong(frame, "lossbridge's ratio is called with other buffers than it says");
  c.divisor = divisor == nullptr ? 1 : at(c, divisor, 0);
  const bool shares = given & RATIO_SHARES;
  c.result = shares ? nullptr : result.data;
  reduce(c, shares ? nullptr : losses.data, shares ? result.data : nullptr);
  return nullptr;
}

template <class Execute>
Error *handle(CallFrame *frame, const Execute &execute) {
  Extension *extension = frame->extension_start;
  if (extension != nullptr && extension->type == METADATA)
    return tell_version(*frame, *reinterpret_cast<MetadataExtension *>(extension));
  if (frame->stage != EXECUTE) return wrong(*frame, "lossbridge's rows have no other stage than that of execution");
  try {
    return execute(*frame);
  } catch (const std::bad_alloc &) {
    return error(*frame, RESOURCE_EXHAUSTED, "lossbridge's rows find no memory");
  }
}

}  // namespace

Error *xla_rows(CallFrame *frame) { return handle(frame, execute_rows); }
Error *xla_ratio(CallFrame *frame) { return handle(frame, execute_ratio); }

}  // namespace lossbridge
