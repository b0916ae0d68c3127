"""GET /v2/openapi.json: the REST side as an OpenAPI 3.1 page, made for the models that are served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from burnish.host import versions
from burnish.serve.protocol import Signature
from burnish.serve.wire import Limits, Wire
from burnish.serve.worker import Served

_NUMBERS = {"BOOL": "boolean", "INT32": "integer", "INT64": "integer"}
_ERROR = {"description": "One sentence.", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
_MISTAKES = {status: _ERROR for status in ("400", "401", "404", "405", "408", "413", "415", "503")}


def page(models: Sequence[Served], limits: Limits) -> dict[str, Any]:
    """The document; `limits` are told where a schema has a place for them."""
    paths: dict[str, Any] = {
        "/v2": _get("The server and the extensions of the protocol that it has."),
        "/v2/health/live": _get("200 when a worker is there."),
        "/v2/health/ready": _get("200 when a worker has its artifact open."),
        "/v2/models/stats": _get("Requests, and the time they waited and were scored."),
        "/v2/repository/index": {"post": {"summary": "The versions that are here.", "responses": {"200": _ok(), **_MISTAKES}}},
    }
    schemas: dict[str, Any] = {
        "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    }
    for model in models:
        at = f"/v2/models/{model.name}"
        paths[at] = _get("Names, datatypes and shapes of both ways to call the model.")
        paths[f"{at}/ready"] = _get("200 when the model is served.")
        paths[f"{at}/config"] = _get("The model as Triton's configuration tells it.")
        paths[f"{at}/stats"] = _get("Requests, and the time they waited and were scored.")
        schemas[model.name] = _request(model.signature, limits)
        body = {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.name}"}}}}
        timeout = {"name": "X-Request-Timeout-Ms", "in": "header", "schema": {"type": "number", "exclusiveMinimum": 0}}
        summary = "Scores. Tensors may follow the JSON as bytes: the binary tensor extension."
        paths[f"{at}/infer"] = {
            "post": {"summary": summary, "parameters": [timeout], "requestBody": body, "responses": {"200": _ok(), **_MISTAKES}}
        }
    info = {"title": "burnish serve", "version": versions("burnish").get("burnish", "0")}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _ok() -> dict[str, Any]:
    return {"description": "OK", "content": {"application/json": {}}}


def _get(summary: str) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": _ok(), **_MISTAKES}}}


def _request(signature: Signature, limits: Limits) -> dict[str, Any]:
    """An inference request: its tensors are those of either form."""
    wires = {(wire.name, wire.shape): wire for wire in (*signature.request.values(), *signature.rows.values())}
    tensors = [_tensor(wire, limits) for wire in wires.values()]
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": {"oneOf": tensors}, "maxItems": limits.tensors},
            "parameters": {
                "type": "object",
                "properties": {"timeout": {"type": "integer", "minimum": 0}, "binary_data_output": {"type": "boolean"}},
            },
        },
    }


def _tensor(wire: Wire, limits: Limits) -> dict[str, Any]:
    rows = {"type": "integer", "minimum": 0, "maximum": limits.rows}
    shape = {"type": "array", "prefixItems": [rows, *({"const": n} for n in wire.shape)], "minItems": 1 + len(wire.shape)}
    value = {"type": _NUMBERS.get(wire.datatype, "number")}
    return {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": wire.name},
            "datatype": {"const": wire.datatype},
            "shape": {**shape, "maxItems": 1 + len(wire.shape)},
            "data": {
                "type": "array",
                "description": f"Flat, or nested like the shape; numbers of {wire.datatype}",
                "items": {"anyOf": [value, {"type": "array"}]},
            },
        },
    }
