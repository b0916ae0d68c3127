"""What tests and benchmarks are written with: graphs in one line, rows for them, one case an op, random graphs.

Imports numpy only; `graphs()` needs hypothesis.
"""

from burnish.testing.builders import (
    Weights,
    as_request,
    column,
    concat,
    embeddings,
    features,
    inputs,
    linear,
    lookup,
    mlp,
    one_request,
    reshape,
    rows,
    sigmoid,
    table,
)
from burnish.testing.cases import model_cases, op_cases
from burnish.testing.checks import assert_same_function
from burnish.testing.models import MODELS, dcn_v2, deepfm, din, dlrm, mmoe, two_tower
from burnish.testing.random_graphs import graphs, random_graph

__all__ = [
    "MODELS",
    "Weights",
    "as_request",
    "assert_same_function",
    "column",
    "concat",
    "dcn_v2",
    "deepfm",
    "din",
    "dlrm",
    "embeddings",
    "features",
    "graphs",
    "inputs",
    "linear",
    "lookup",
    "mlp",
    "mmoe",
    "model_cases",
    "one_request",
    "op_cases",
    "random_graph",
    "reshape",
    "rows",
    "sigmoid",
    "table",
    "two_tower",
]
