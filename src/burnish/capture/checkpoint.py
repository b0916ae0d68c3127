"""A checkpoint into a module of the same architecture: what torch.save wrote of its state dict, alone or beside other things."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.errors import CaptureError

WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile, and trainers that hold the model
SHOWN = 3  # differences of a kind that are named


def put(model: Any, path: Path) -> None:
    """Load the state dict in `path` into `model`, an nn.Module. Embedding tables may have other numbers of rows than they had.

    CaptureError when the file is not a checkpoint, or is one of another architecture: then with what differs.
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise CaptureError(f"a checkpoint is loaded into an nn.Module, and this model is a {type(model).__name__}. Leave out @{path.name}")
    wanted = model.state_dict()
    state = _state(path, wanted)
    resized = {name for name in state if name in wanted and state[name].shape != wanted[name].shape and _is_table(model, name, state[name])}
    differences = _differences(wanted, {name: tensor for name, tensor in state.items() if name not in resized}, resized)
    if differences:
        raise CaptureError(f"{path} is of another architecture: {differences}")
    for name in resized:
        table: Any = model.get_submodule(name.rpartition(".")[0])
        table.weight = torch.nn.Parameter(torch.empty_like(state[name]), requires_grad=table.weight.requires_grad)
        table.num_embeddings = len(state[name])
    model.load_state_dict(state)


def _state(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping from names to tensors in the file that shares most names with `wanted`."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CaptureError(f"no checkpoint {path}") from None
    except Exception as error:  # torch.load raises many types on a file that is not one of its own
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CaptureError(f"{path} is not a checkpoint that torch.load reads with weights_only=True: {told}") from error
    held = [content, *content.values()] if isinstance(content, Mapping) else []
    states = [dict(each) for each in held if isinstance(each, Mapping) and any(isinstance(value, torch.Tensor) for value in each.values())]
    states += [_bare(state) for state in states]
    if not states:
        raise CaptureError(f"{path} holds no state dict. Save one: torch.save(model.state_dict(), path)")
    return max(states, key=lambda state: len(state.keys() & wanted.keys()))


def _bare(state: Mapping[str, Any]) -> dict[str, Any]:
    """Names without what wrappers put before them."""
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return dict(state)


def _is_table(model: Any, name: str, tensor: Any) -> bool:
    """Whether it is an embedding's weight of the same width."""
    import torch

    module, _, own = name.rpartition(".")
    table = model.get_submodule(module)
    is_table = isinstance(table, torch.nn.Embedding | torch.nn.EmbeddingBag) and own == "weight"
    return bool(is_table and tensor.ndim == 2 and tensor.shape[1] == table.weight.shape[1])


def _differences(wanted: Mapping[str, Any], state: Mapping[str, Any], resized: set[str]) -> str:
    lacks = [name for name in wanted if name not in state and name not in resized]
    extra = [name for name in state if name not in wanted]
    other = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}"
        for name, tensor in state.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    told = [f"it lacks {_some(lacks)}"] * bool(lacks) + [f"it also has {_some(extra)}"] * bool(extra) + [_some(other)] * bool(other)
    return "; ".join(told)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
