// Our declarations of XLA's structs, against the header that jaxlib ships: compiled, never run.
#include <xla/ffi/api/c_api.h>

#include "xla_ffi.h"

namespace ours = lossbridge::xla;

#define SAME(their_struct, their_field, our_struct, our_field)                                     \
  static_assert(offsetof(their_struct, their_field) == offsetof(ours::our_struct, our_field) &&    \
                    sizeof(their_struct::their_field) == sizeof(ours::our_struct::our_field),      \
                #our_struct "::" #our_field)

static_assert(XLA_FFI_API_MAJOR == ours::API_MAJOR && XLA_FFI_API_MINOR == ours::API_MINOR, "version");

SAME(XLA_FFI_Extension_Base, struct_size, Extension, struct_size);
SAME(XLA_FFI_Extension_Base, type, Extension, type);
SAME(XLA_FFI_Extension_Base, next, Extension, next);
static_assert(XLA_FFI_Extension_Metadata == ours::METADATA, "METADATA");

SAME(XLA_FFI_Api_Version, major_version, ApiVersion, major_version);
SAME(XLA_FFI_Api_Version, minor_version, ApiVersion, minor_version);
static_assert(sizeof(XLA_FFI_Api_Version) == sizeof(ours::ApiVersion), "ApiVersion");
SAME(XLA_FFI_Metadata, api_version, Metadata, api_version);
SAME(XLA_FFI_Metadata_Extension, extension_base, MetadataExtension, base);
SAME(XLA_FFI_Metadata_Extension, metadata, MetadataExtension, metadata);

SAME(XLA_FFI_Buffer, dtype, Buffer, dtype);
SAME(XLA_FFI_Buffer, data, Buffer, data);
SAME(XLA_FFI_Buffer, rank, Buffer, rank);
SAME(XLA_FFI_Buffer, dims, Buffer, dims);
static_assert(XLA_FFI_DataType_PRED == int(ours::DataType::PRED), "PRED");
static_assert(XLA_FFI_DataType_S32 == int(ours::DataType::S32), "S32");
static_assert(XLA_FFI_DataType_S64 == int(ours::DataType::S64), "S64");
static_assert(XLA_FFI_DataType_F16 == int(ours::DataType::F16), "F16");
static_assert(XLA_FFI_DataType_F32 == int(ours::DataType::F32), "F32");
static_assert(XLA_FFI_DataType_F64 == int(ours::DataType::F64), "F64");
static_assert(XLA_FFI_DataType_BF16 == int(ours::DataType::BF16), "BF16");

SAME(XLA_FFI_Args, size, Buffers, size);
SAME(XLA_FFI_Args, args, Buffers, buffers);
SAME(XLA_FFI_Rets, size, Buffers, size);
SAME(XLA_FFI_Rets, rets, Buffers, buffers);
SAME(XLA_FFI_Array, dtype, Array, dtype);
SAME(XLA_FFI_Array, size, Array, size);
SAME(XLA_FFI_Array, data, Array, data);
SAME(XLA_FFI_Attrs, size, Attributes, size);
SAME(XLA_FFI_Attrs, types, Attributes, types);
SAME(XLA_FFI_Attrs, attrs, Attributes, attributes);
static_assert(XLA_FFI_AttrType_ARRAY == ours::ARRAY, "ARRAY");

SAME(XLA_FFI_CallFrame, struct_size, CallFrame, struct_size);
SAME(XLA_FFI_CallFrame, extension_start, CallFrame, extension_start);
SAME(XLA_FFI_CallFrame, api, CallFrame, api);
SAME(XLA_FFI_CallFrame, stage, CallFrame, stage);
SAME(XLA_FFI_CallFrame, args, CallFrame, arguments);
SAME(XLA_FFI_CallFrame, rets, CallFrame, results);
SAME(XLA_FFI_CallFrame, attrs, CallFrame, attributes);
static_assert(XLA_FFI_ExecutionStage_EXECUTE == ours::EXECUTE, "EXECUTE");

SAME(XLA_FFI_Error_Create_Args, struct_size, ErrorArguments, struct_size);
SAME(XLA_FFI_Error_Create_Args, message, ErrorArguments, message);
SAME(XLA_FFI_Error_Create_Args, errc, ErrorArguments, code);
static_assert(XLA_FFI_Error_Code_INVALID_ARGUMENT == ours::INVALID_ARGUMENT, "INVALID_ARGUMENT");
static_assert(XLA_FFI_Error_Code_RESOURCE_EXHAUSTED == ours::RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED");
SAME(XLA_FFI_Api, XLA_FFI_Error_Create, Api, create_error);
