"""Writes docs/api.md from protos/vision_agent.proto: `python docs/api_reference.py`.

Every call, message and enum with the comments that stand at them in the proto, in its order.
tests/unit/test_documentation.py fails when the page is old.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2 as d
from grpc_tools import protoc

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
PROTO = "protos/vision_agent.proto"
HEAD = """# API

Written by `python docs/api_reference.py`; change
[the proto](../protos/vision_agent.proto), not this page. An `optional` field that is not set says
nothing; any other says 0, false or "".
"""
_FIELD, _MESSAGE, _ENUM, _SERVICE, _VALUE, _METHOD = 2, 4, 5, 6, 2, 2
"""Where things stand in a descriptor: numbers of the fields of descriptor.proto."""
_T = d.FieldDescriptorProto
_TYPES = {
    _T.TYPE_BOOL: "bool",
    _T.TYPE_BYTES: "bytes",
    _T.TYPE_DOUBLE: "double",
    _T.TYPE_FLOAT: "float",
    _T.TYPE_INT64: "int64",
    _T.TYPE_STRING: "string",
    _T.TYPE_UINT32: "uint32",
    _T.TYPE_UINT64: "uint64",
}


def read_proto() -> d.FileDescriptorProto:
    """The proto with its comments.

    Raises:
        ValueError: protoc refuses it, and has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        arguments = ["--include_source_info", f"--descriptor_set_out={out}", str(ROOT / PROTO)]
        if protoc.main(["protoc", f"-I{ROOT}", *arguments]) != 0:
            raise ValueError(f"protoc cannot read {PROTO}")
        return d.FileDescriptorSet.FromString(out.read_bytes()).file[0]


def page() -> str:
    """The whole page."""
    proto = read_proto()
    comments = {
        tuple(at.path): " ".join((at.leading_comments + at.trailing_comments).split())
        for at in proto.source_code_info.location
    }
    lines = [HEAD]
    for number, service in enumerate(proto.service):
        lines += _service(service, (_SERVICE, number), comments)
    lines += ["## Messages", ""]
    for number, message in enumerate(proto.message_type):
        lines += _message(message, (_MESSAGE, number), comments)
    lines += ["## Enums", ""]
    for number, enum in enumerate(proto.enum_type):
        lines += _enum(enum, (_ENUM, number), comments)
    return "\n".join(lines).rstrip() + "\n"


Comments = dict[tuple[int, ...], str]


def _service(
    service: d.ServiceDescriptorProto, at: tuple[int, ...], comments: Comments
) -> Iterator[str]:
    yield from (f"## Calls of `{service.name}`", "")
    yield from ("| call | takes | gives | |", "|---|---|---|---|")
    for number, method in enumerate(service.method):
        takes = ("stream of " if method.client_streaming else "") + _link(method.input_type)
        gives = ("stream of " if method.server_streaming else "") + _link(method.output_type)
        says = comments.get((*at, _METHOD, number), "")
        yield f"| `{method.name}` | {takes} | {gives} | {says} |"
    yield ""


def _message(message: d.DescriptorProto, at: tuple[int, ...], comments: Comments) -> Iterator[str]:
    yield from (f"### {message.name}", "")
    if says := comments.get(at):
        yield from (says, "")
    if not message.field:
        yield from ("No fields.", "")
        return
    yield from ("| field | type | |", "|---|---|---|")
    for number, field in enumerate(message.field):
        says = comments.get((*at, _FIELD, number), "")
        yield f"| `{field.name}` | {_kind(message, field)} | {says} |"
    yield ""


def _enum(enum: d.EnumDescriptorProto, at: tuple[int, ...], comments: Comments) -> Iterator[str]:
    yield from (f"### {enum.name}", "")
    if says := comments.get(at):
        yield from (says, "")
    yield from ("| value | number | |", "|---|---|---|")
    for number, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {comments.get((*at, _VALUE, number), '')} |"
    yield ""


def _kind(message: d.DescriptorProto, field: d.FieldDescriptorProto) -> str:
    name = _link(field.type_name) if field.type_name else _TYPES[field.type]
    if field.label == _T.LABEL_REPEATED:
        return f"repeated {name}"
    if field.proto3_optional:
        return f"optional {name}"
    if field.HasField("oneof_index"):
        return f"{name}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return name


def _link(type_name: str) -> str:
    name = type_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})"


if __name__ == "__main__":
    PAGE.write_text(page())
