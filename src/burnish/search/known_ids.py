"""Which ids of the validation rows were met before, and how often: slices of cold and rare ids, and rows that have nothing in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from burnish.errors import JobError
from burnish.inputs import Input

COLUMNS = 2  # with the most ids, as a rule those of the user and of the item
LEAST_IDS = 100  # of a column whose ids can be rare
RARE = 10  # an id met fewer times


def id_columns(inputs: Sequence[Input], columns: Mapping[str, tuple[str, ...]], table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Column name -> its ids (N,) in a table of rows; columns of lists are left out."""
    found = {}
    for spec in inputs:
        if spec.dtype in ("int32", "int64"):
            array, names = table[spec.name], columns[spec.name]
            if not spec.shape:
                found[names[0]] = array
            elif len(names) == spec.columns and array.ndim == 2:
                found |= {name: array[:, c] for c, name in enumerate(names)}
    return found


def check_shared(file: str, ids: Mapping[str, np.ndarray], known_file: str, known: Mapping[str, np.ndarray]) -> None:
    """JobError when no id of any column is among the known ones: such rows were numbered by another table."""
    apart = [name for name, values in ids.items() if not np.isin(np.unique(values), known[name]).any()]
    if ids and len(apart) == len(ids):
        raise JobError(
            f"{file} and {known_file} have no id in common, in any of {len(ids)} columns ({', '.join(list(ids)[:5])}). "
            "Map the ids of both files by the table that the model was trained with"
        )


def rarity(ids: Mapping[str, np.ndarray], known_file: str, known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Slices for the columns with the most ids: slice name -> (N,) how often each row's id was met in the known rows, in words."""
    sizes = {name: len(np.unique(values)) for name, values in ids.items()}
    largest = sorted((name for name in ids if sizes[name] >= LEAST_IDS), key=lambda name: -sizes[name])[:COLUMNS]
    words = np.array(["never", f"fewer than {RARE} times", f"{RARE} times or more"])
    found = {}
    for name in largest:
        met, counts = np.unique(known[name], return_counts=True)
        at = np.minimum(np.searchsorted(met, ids[name]), len(met) - 1)
        times = np.where(met[at] == ids[name], counts[at], 0)
        found[f"{name}, met in {known_file}"] = words[(times > 0).astype(int) + (times >= RARE)]
    return found
