// A call from XLA's foreign function interface: its buffers and attributes as a `Call` of call.h.
// lossbridge/frameworks/jax_rows.py makes these calls; what is said of arguments and attributes here is said there too.
#include "xla.h"

#include <cfenv>
#include <cstring>
#include <new>

#include "rows.h"
#include "units.h"

namespace lossbridge {
namespace {

using namespace xla;

// The attribute `integers`: an array of these.
enum Integer { RULE, AXIS, BALANCED, THREADS, ARGUMENTS, RESULTS, INTEGERS };
// The attribute `numbers`.
enum Number { LABEL_SMOOTHING, EPSILON, TEMPERATURE, GAMMA, PER_CLASS_NUMBER, NUMBERS };

// Which arguments there are besides predictions and target: bits of integers[ARGUMENTS]. They come in this order.
enum Argument { PER_CLASS = 1, COUNTED = 2, UPSTREAM = 4, EXPECTED = 8 };
// And which results.
enum Result { LOSSES = 1, GRADIENT = 2, TARGET_GRADIENT = 4 };

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

// XLA's threads take subnormal numbers for 0. The rows need them: float16 has its smallest numbers there.
class Arithmetic {
 public:
  Arithmetic() {
    std::fegetenv(&before);
    std::fesetenv(FE_DFL_ENV);
  }
  ~Arithmetic() { std::fesetenv(&before); }

 private:
  std::fenv_t before;
};

Error *execute(const CallFrame &frame) {
  const Attributes &attributes = frame.attributes;
  if (frame.stage != EXECUTE) return wrong(frame, "lossbridge's rows have no other stage than that of execution");
  if (attributes.size != 2 || attributes.types[0] != ARRAY || attributes.types[1] != ARRAY)
    return wrong(frame, "lossbridge's rows take two arrays as attributes");
  const Array &all_integers = *static_cast<const Array *>(attributes.attributes[0]);
  const Array &all_numbers = *static_cast<const Array *>(attributes.attributes[1]);
  if (all_integers.size != INTEGERS || all_integers.dtype != DataType::S64 || all_numbers.size != NUMBERS ||
      all_numbers.dtype != DataType::F64 || frame.arguments.size < 2)
    return wrong(frame, "lossbridge's rows are called by another version of lossbridge");
  const int64_t *integers = static_cast<const int64_t *>(all_integers.data);
  const double *numbers = static_cast<const double *>(all_numbers.data);

  Next argument{frame.arguments, 0}, result{frame.results, 0};
  const Buffer &pred = *argument.take(true), &target = *argument.take(true);
  Call c{};
  if (!to_dtype(pred.dtype, &c.dtype) || !to_dtype(target.dtype, &c.target_dtype) || integers[AXIS] >= pred.rank)
    return wrong(frame, "lossbridge has no rows for these arrays");
  c.rule = static_cast<Rule>(integers[RULE]);
  set_shape(c, pred, integers[AXIS]);
  c.pred = pred.data;
  c.target = target.data;
  c.label_smoothing = numbers[LABEL_SMOOTHING];
  c.epsilon = numbers[EPSILON];
  c.temperature = numbers[TEMPERATURE];
  c.gamma = numbers[GAMMA];
  c.per_class_number = numbers[PER_CLASS_NUMBER];
  c.balanced = integers[BALANCED] != 0;
  const int64_t given = integers[ARGUMENTS], wanted = integers[RESULTS];
  c.per_class = data(argument.take(given & PER_CLASS));
  c.counted = static_cast<const uint8_t *>(data(argument.take(given & COUNTED)));
  c.upstream_each = data(argument.take(given & UPSTREAM));
  c.upstream = 1;
  c.threads = static_cast<int32_t>(integers[THREADS]);
  const Buffer *expected = argument.take(given & EXPECTED), *written = argument.take(given & EXPECTED);
  const Buffer *losses = result.take(wanted & LOSSES), *gradient = result.take(wanted & GRADIENT);
  const Buffer *target_gradient = result.take(wanted & TARGET_GRADIENT);
  if (!argument.is_at_end() || !result.is_at_end())
    return wrong(frame, "lossbridge's rows are called with other buffers than their attributes say");
  if (expected != nullptr && written->data == gradient->data) {
    // The gradient was written for an upstream that was expected, into the memory that is now the result's.
    const auto size = static_cast<size_t>(samples(c) * result_bytes(c));
    if (std::memcmp(expected->data, c.upstream_each, size) == 0) return nullptr;
  }
  c.losses = fresh(losses);
  c.gradient = fresh(gradient);
  c.target_gradient = fresh(target_gradient);
  const Arithmetic usual;
  run(c);
  return nullptr;
}

}  // namespace

Error *xla_handler(CallFrame *frame) {
  Extension *extension = frame->extension_start;
  if (extension != nullptr && extension->type == METADATA)
    return tell_version(*frame, *reinterpret_cast<MetadataExtension *>(extension));
  try {
    return execute(*frame);
  } catch (const std::bad_alloc &) {
    return error(*frame, RESOURCE_EXHAUSTED, "lossbridge's rows find no memory");
  }
}

}  // namespace lossbridge
