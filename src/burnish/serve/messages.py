"""The messages of inference.proto as classes, made from that file when they are first needed.

Reading it here takes the place of a compiler's output in the tree, which would tie the package to one version of protobuf. Only what that
file uses of the language is understood. The classes are in a pool of their own, so that a client's in the same process do not collide.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import msgspec

SERVICE = "inference.GRPCInferenceService"
_FILE = Path(__file__).with_name("inference.proto")
_TOKEN = re.compile(r'"[^"]*"|[\w.]+|[^\s\w]')


class Protocol(msgspec.Struct, frozen=True):
    """Message classes by name; each method's request and response by its name, and which methods are streams both ways."""

    messages: dict[str, Any]
    methods: dict[str, tuple[str, str]]
    streams: frozenset[str]

    def __getitem__(self, name: str) -> Any:
        return self.messages[name]


@functools.cache
def protocol() -> Protocol:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="burnish/inference.proto", syntax="proto3")
    _read(_FILE.read_text(), file)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    classes = {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{message.name}"))
        for message in file.message_type
    }
    service = file.service[0].method
    methods = {m.name: (m.input_type.rpartition(".")[2], m.output_type.rpartition(".")[2]) for m in service}
    return Protocol(classes, methods, frozenset(m.name for m in service if m.server_streaming))


def _read(text: str, file: Any) -> None:
    """Fill a FileDescriptorProto from the text of a .proto file."""
    tokens = _TOKEN.findall(re.sub(r"//.*", "", text))[::-1]
    while tokens:
        match tokens.pop():
            case "syntax":
                _skip(tokens)
            case "package":
                file.package = tokens.pop()
                _skip(tokens)
            case "message":
                _message(tokens, file.message_type.add(), f".{file.package}")
            case "service":
                _service(tokens, file.service.add(), f".{file.package}")
            case other:
                raise ValueError(f"{other!r} is not understood in {_FILE.name}")


def _skip(tokens: list[str]) -> None:
    """Drop tokens up to the next semicolon."""
    while tokens.pop() != ";":
        pass


def _message(tokens: list[str], into: Any, scope: str) -> None:
    """message NAME { message ... | oneof ... | [repeated] TYPE NAME = NUMBER; | map<string, TYPE> NAME = NUMBER; }"""
    into.name = tokens.pop()
    scope = f"{scope}.{into.name}"
    tokens.pop()  # {
    one_of = False
    while (token := tokens.pop()) != "}" or one_of:
        if token == "}":
            one_of = False
        elif token == "message":
            _message(tokens, into.nested_type.add(), scope)
        elif token == "oneof":
            into.oneof_decl.add(name=tokens.pop())
            tokens.pop()  # {
            one_of = True
        else:
            _field(token, tokens, into, scope, one_of)


def _field(token: str, tokens: list[str], into: Any, scope: str, one_of: bool) -> None:
    field = into.field.add(label=1)  # optional
    if token == "map":  # a map is a repeated message of key and value
        tokens.pop()  # <
        key, _, value, _ = (tokens.pop() for _ in range(4))
        name = tokens.pop()
        entry = into.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        for number, (each, kind) in enumerate((("key", key), ("value", value)), 1):
            _typed(entry.field.add(name=each, number=number, label=1), kind, into, scope)
        field.label, field.type, field.type_name = 3, 11, f"{scope}.{entry.name}"
    else:
        if token == "repeated":
            field.label, token = 3, tokens.pop()
        _typed(field, token, into, scope)
        name = tokens.pop()
    field.name = name
    tokens.pop()  # =
    field.number = int(tokens.pop())
    tokens.pop()  # ;
    if one_of:
        field.oneof_index = len(into.oneof_decl) - 1


def _typed(field: Any, kind: str, into: Any, scope: str) -> None:
    """Give a field its type: a scalar, a message inside this one, or one of the file."""
    scalar = f"TYPE_{kind.upper()}"
    if scalar in field.Type.keys():  # noqa: SIM118  it is no dict
        field.type = field.Type.Value(scalar)
    else:
        inside = any(kind == nested.name for nested in into.nested_type)
        field.type, field.type_name = 11, f"{scope}.{kind}" if inside else f".{scope.split('.')[1]}.{kind}"


def _service(tokens: list[str], into: Any, scope: str) -> None:
    """service NAME { rpc NAME([stream] TYPE) returns ([stream] TYPE); }"""
    into.name = tokens.pop()
    tokens.pop()  # {
    while tokens.pop() == "rpc":
        told = []
        while (token := tokens.pop()) != ";":
            told.append(token)
        name, request, response = (token for token in told if token not in ("(", ")", "returns", "stream"))
        both = "stream" in told
        into.method.add(
            name=name,
            input_type=f"{scope}.{request}",
            output_type=f"{scope}.{response}",
            client_streaming=both,
            server_streaming=both,
        )
