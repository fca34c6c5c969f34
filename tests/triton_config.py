"""The part of Triton's `model_config.proto` that we write, declared by hand for protobuf's parser.

Names, numbers and types are those of the published file, so its text-format parser refuses a field
that Triton does not have, or a value of another type.
"""

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {"string": _Field.TYPE_STRING, "int32": _Field.TYPE_INT32, "int64": _Field.TYPE_INT64}
_DATA_TYPES = (
    "INVALID BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 STRING BF16"
)
_ENUMS = {
    "DataType": [f"TYPE_{name}" for name in _DATA_TYPES.split()],
    "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"],
}
# Message -> number, name and type of its fields; * marks a repeated one.
_MESSAGES = {
    "ModelInput": [(1, "name", "string"), (2, "data_type", "DataType"), (4, "dims", "int64*")],
    "ModelOutput": [
        (1, "name", "string"),
        (2, "data_type", "DataType"),
        (3, "dims", "int64*"),
        (4, "label_filename", "string"),
    ],
    "ModelInstanceGroup": [(1, "name", "string"), (2, "count", "int32"), (4, "kind", "Kind")],
    "ModelDynamicBatching": [(1, "preferred_batch_size", "int32*")],
    "ModelParameter": [(1, "string_value", "string")],
    # How protobuf stores map<string, ModelParameter>, and how text format writes it.
    "ParametersEntry": [(1, "key", "string"), (2, "value", "ModelParameter")],
    "ModelConfig": [
        (1, "name", "string"),
        (17, "backend", "string"),
        (4, "max_batch_size", "int32"),
        (5, "input", "ModelInput*"),
        (6, "output", "ModelOutput*"),
        (7, "instance_group", "ModelInstanceGroup*"),
        (11, "dynamic_batching", "ModelDynamicBatching"),
        (14, "parameters", "ParametersEntry*"),
    ],
}


def parse_config(text: str) -> Any:
    """A `config.pbtxt` as a ModelConfig message."""
    return text_format.Parse(text, _model_config()())


@cache
def _model_config() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="subset.proto", package="t", syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field_name, kind in fields:
            field = message.field.add(name=field_name, number=number)
            field.label = _Field.LABEL_REPEATED if kind[-1] == "*" else _Field.LABEL_OPTIONAL
            kind = kind.removesuffix("*")
            if kind in _TYPES:
                field.type = _TYPES[kind]
            else:
                field.type = _Field.TYPE_ENUM if kind in _ENUMS else _Field.TYPE_MESSAGE
                field.type_name = f".t.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))
