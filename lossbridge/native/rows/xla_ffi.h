// The part of XLA's foreign function interface that xla.cpp uses, declared here so that nothing of jaxlib is needed to
// build: version 0.3, of jaxlib's xla/ffi/api/c_api.h. tests/backends/xla_layout.cpp compares them with that file.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lossbridge {
namespace xla {

constexpr int API_MAJOR = 0, API_MINOR = 3;

struct Api;
struct Error;

// Every struct begins with its size as the caller knows it; later versions add fields at the end.
struct Extension {
  size_t struct_size;
  int type;
  Extension *next;
};
constexpr int METADATA = 1;  // Extension::type

struct ApiVersion {
  size_t struct_size;
  Extension *extension_start;
  int major_version, minor_version;
};

struct Metadata {
  size_t struct_size;
  ApiVersion api_version;
};

struct MetadataExtension {
  Extension base;
  Metadata *metadata;
};

enum class DataType : int { PRED = 1, S32 = 4, S64 = 5, F16 = 10, F32 = 11, F64 = 12, BF16 = 16 };

struct Buffer {
  size_t struct_size;
  Extension *extension_start;
  DataType dtype;
  void *data;
  int64_t rank;
  int64_t *dims;
};

// Of arguments and of results; `types` are all 1, buffers.
struct Buffers {
  size_t struct_size;
  Extension *extension_start;
  int64_t size;
  int *types;
  Buffer **buffers;
};

struct Array {
  DataType dtype;
  size_t size;
  void *data;
};
constexpr int ARRAY = 1;  // Attributes::types

struct Attributes {  // sorted by their names
  size_t struct_size;
  Extension *extension_start;
  int64_t size;
  int *types;
  void *names;
  void **attributes;
};

constexpr int EXECUTE = 3;  // CallFrame::stage

struct CallFrame {
  size_t struct_size;
  Extension *extension_start;
  const Api *api;
  void *context;
  int stage;
  Buffers arguments, results;
  Attributes attributes;
};

constexpr int INVALID_ARGUMENT = 3, RESOURCE_EXHAUSTED = 8;  // ErrorArguments::code

struct ErrorArguments {
  size_t struct_size;
  Extension *extension_start;
  const char *message;
  int code;
};

struct Api {
  size_t struct_size;
  Extension *extension_start;
  ApiVersion api_version;
  const void *internal_api;
  Error *(*create_error)(ErrorArguments *);
};

}  // namespace xla
}  // namespace lossbridge
