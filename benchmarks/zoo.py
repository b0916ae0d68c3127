"""Rankers of other libraries, one row each: how a user would build them, what they are called with. Nothing here is trained.

A library is imported when its first model is made. Packages that pytorch-widedeep and torchrec import and their rankers never call
(spaCy, torchvision, GPU kernels, ...) stand in as empty modules where they are not installed, so that one `pip install --no-deps` is
enough; `EMPTY` names them.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from typing import Any

import torch
from torch import nn

from burnish.inputs import Input
from families import FAMILIES, WITH_HISTORY, Fields

PIP = {
    "deepctr-torch": "pip install --no-deps deepctr-torch requests urllib3 idna certifi charset-normalizer pandas python-dateutil "
    "scikit-learn scipy joblib threadpoolctl tqdm",
    "torch-rechub": "pip install --no-deps torch-rechub pandas python-dateutil scikit-learn scipy joblib threadpoolctl tqdm",
    "pytorch-widedeep": "pip install --no-deps pytorch-widedeep pandas python-dateutil scikit-learn scipy joblib threadpoolctl tqdm einops",
    "torchrec": "pip install --no-deps torchrec",
}
EMPTY = (
    "cv2", "fbgemm_gpu", "gensim", "iopath", "pyre_extensions", "spacy", "tensordict", "torchmetrics", "torchvision", "transformers",
    "torchrec.datasets.utils", "torchrec.distributed", "torchrec.fx", "torchrec.modules.embedding_configs",
    "torchrec.modules.embedding_modules", "torchrec.optim", "torchrec.quant", "torchrec.sparse.jagged_tensor", "torchrec.streamable",
    "torchrec.types",
)  # fmt: skip
FIELDS, CARDINALITY, WIDTH, DENSE, STEPS = 8, 1000, 16, 5, 20
NAMES = [f"c{i}" for i in range(FIELDS)]
NUMBERS = [f"d{i}" for i in range(DENSE)]


class Absent(Exception):
    """A library that is not installed; the text is the line that installs it."""


@dataclass(frozen=True)
class Entry:
    """One model: `make` gives the module in evaluation mode and its inputs."""

    library: str
    name: str
    build: Callable[[], tuple[nn.Module, Sequence[Input]]]

    def make(self, seed: int = 0) -> tuple[nn.Module, Sequence[Input]]:
        """The module with weights that make its scores differ from row to row, and its inputs; Absent when its library is not there."""
        torch.manual_seed(seed)
        with _stand_ins():
            try:
                module, inputs = self.build()
            except ModuleNotFoundError as error:
                raise Absent(f"{error}. Install it: {PIP[self.library]}") from None
        _spread(module)
        return module.eval(), inputs


class _Empty(types.ModuleType):
    """A module of which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls)})


class _Finder:
    """Gives an empty module for those of EMPTY that nothing else finds; torchrec's own inner modules are never asked for."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not any(name == empty or name.startswith(empty + ".") for empty in EMPTY):
            return None
        return ModuleSpec(name, _Finder, is_package=True)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    @staticmethod
    def exec_module(module: types.ModuleType) -> None:
        pass


class _stand_ins:
    def __enter__(self) -> None:
        absent = [name for name in EMPTY if "." not in name and importlib.util.find_spec(name) is None]
        self.finder = _Finder()
        self.finder.find_spec = lambda name, path=None, target=None: (  # type: ignore[method-assign]
            _Finder.find_spec(name) if name.startswith("torchrec.") or name.split(".")[0] in absent else None
        )
        sys.meta_path.insert(0, self.finder)  # type: ignore[arg-type]

    def __exit__(self, *error: object) -> None:
        sys.meta_path.remove(self.finder)  # type: ignore[arg-type]
        for name in [n for n, module in sys.modules.items() if isinstance(module, _Empty) and "." not in n]:
            del sys.modules[name]  # another package may try to import the real one and live without it


def _spread(module: nn.Module) -> None:
    """Weights as wide as after training: libraries begin with tables of 1e-4, which leave every score at one half."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.dim() > 1:
                p.normal_(0, 0.3 if "emb" in name.lower() or "table" in name else max(1, p.shape[-1]) ** -0.5)
            elif "bias" in name:
                p.normal_(0, 0.1)
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 1.5)


class First(nn.Module):
    """A model whose forward gives more than the score: the score alone. One that takes a dict is given its inputs as one."""

    def __init__(self, model: nn.Module, by_name: Sequence[str] = ()) -> None:
        super().__init__()
        self.model, self.by_name = model, list(by_name)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        out = self.model(dict(zip(self.by_name, tensors))) if self.by_name else self.model(*tensors)
        return out[0] if isinstance(out, tuple) else out


# deepctr-torch: one float matrix X for everything --------------------------------------------------------------------------------------


def _deepctr(name: str, history: bool = False, linear: bool = True, **options: Any) -> tuple[nn.Module, Sequence[Input]]:
    from deepctr_torch import models
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat

    columns: list[Any] = [SparseFeat(n, CARDINALITY, WIDTH) for n in NAMES] + [DenseFeat(n, 1) for n in NUMBERS]
    bounds: list[int | None] = [CARDINALITY] * FIELDS + [None] * DENSE
    if history:
        past = SparseFeat("hist_c0", CARDINALITY, WIDTH, embedding_name="c0")
        columns.append(VarLenSparseFeat(past, STEPS, length_name="length"))
        bounds += [CARDINALITY] * STEPS + [STEPS + 1]
        if options.get("use_negsampling"):
            columns.append(
                VarLenSparseFeat(SparseFeat("neg_hist_c0", CARDINALITY, WIDTH, embedding_name="c0"), STEPS, length_name="length")
            )
            bounds += [CARDINALITY] * STEPS
        model = getattr(models, name)(columns, ["c0"], **options)
    elif name in ("AFM", "CCPM"):  # these take ids only
        columns, bounds = columns[:FIELDS], bounds[:FIELDS]
        model = getattr(models, name)(columns, columns, **options)
    elif name == "MLR":
        model = models.MLR(columns, **options)
    else:
        model = getattr(models, name)(*([columns, columns] if linear else [columns]), **options)
    return model, [Input("X", "float32", (len(bounds),), cardinality=tuple(bounds))]


# torch-rechub: a dict of columns --------------------------------------------------------------------------------------------------------


def _rechub(name: str, module: str = "ranking", **options: Any) -> tuple[nn.Module, Sequence[Input]]:
    import importlib

    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature

    models = importlib.import_module(f"torch_rechub.models.{module}")
    sparse = [SparseFeature(n, CARDINALITY, WIDTH) for n in NAMES]
    dense = [DenseFeature(n) for n in NUMBERS]
    item = SparseFeature("item", CARDINALITY, WIDTH, padding_idx=0)
    past, other = (
        SequenceFeature(n, CARDINALITY, WIDTH, pooling="concat", shared_with="item", padding_idx=0) for n in ("history", "negative")
    )
    deep = {"dims": [128, 64]}
    arguments: dict[str, tuple[Any, ...]] = {
        "WideDeep": (dense, sparse, deep),
        "DeepFM": (sparse + dense, sparse, deep),
        "DCN": (sparse + dense, 3, deep),
        "DCNv2": (sparse + dense, 3, deep),
        "EDCN": (sparse, 3, {"dims": [FIELDS * WIDTH]}),
        "AFM": (sparse, WIDTH),
        "FiBiNet": (sparse, deep, 3),
        "DeepFFM": (sparse, sparse, WIDTH, deep),
        "FatDeepFFM": (sparse, sparse, WIDTH, 2, deep),
        "BST": (sparse, [past], [item], deep),
        "DIN": (sparse, [past], [item], deep, {"dims": [64, 16]}),
        "DIEN": (sparse, [past], [other], [item], deep),
        "AutoInt": (sparse, dense, 3, 2, 0.0, deep),
        "SharedBottom": (sparse + dense, ["classification"] * 2, deep, [{"dims": [32]}] * 2),
        "ESMM": (sparse[:4], sparse[4:], deep, deep),
        "MMOE": (sparse + dense, ["classification"] * 2, 4, deep, [{"dims": [32]}] * 2),
        "PLE": (sparse + dense, ["classification"] * 2, 2, 2, 1, deep, [{"dims": [32]}] * 2),
        "AITM": (sparse + dense, 2, deep, [{"dims": [32]}] * 2),
    }
    given = arguments[name]
    if name in ("DeepFFM", "FatDeepFFM"):  # field-aware: a vector for each other field
        given = (sparse, [SparseFeature(n, CARDINALITY * FIELDS, WIDTH) for n in NAMES], *given[2:])
    model = getattr(models, name)(*given, **options)
    told = repr(given)
    ids = [n for n in NAMES if f"SparseFeature {n} " in told]
    numbers = [n for n in NUMBERS if f"DenseFeature {n}>" in told]
    specs = [Input(n, "int64", (), cardinality=CARDINALITY) for n in ids] + [Input(n, "float32", ()) for n in numbers]
    for feature, shape in ((past, (STEPS,)), (other, (STEPS,)), (item, ())):
        if f" {feature.name} " in told:
            specs.append(Input(feature.name, "int64", shape, cardinality=CARDINALITY))
    return First(model, [spec.name for spec in specs]), specs


# pytorch-widedeep: a matrix for each part ----------------------------------------------------------------------------------------------


def _widedeep(name: str, rec: bool = False, **options: Any) -> tuple[nn.Module, Sequence[Input]]:
    import importlib

    from pytorch_widedeep.models import Wide, WideDeep

    places = {n: i for i, n in enumerate(NAMES + NUMBERS)}
    ids: list[Any] = [(n, CARDINALITY) for n in NAMES] if options.pop("pairs", rec) else [(n, CARDINALITY, WIDTH) for n in NAMES]
    numbers = {"continuous_cols": NUMBERS} if options.pop("dense", True) else {}
    part = getattr(importlib.import_module("pytorch_widedeep.models" + (".rec" if rec else "")), name)
    deep = part(column_idx=places, cat_embed_input=ids, **numbers, **options)
    model: nn.Module = WideDeep(wide=Wide(FIELDS * CARDINALITY), deeptabular=deep)
    if name == "TabNet":  # its second output is a loss
        model = First(model, ["wide", "deeptabular"])
    bounds = [CARDINALITY + 1] * FIELDS + [None] * DENSE
    wide = Input("wide", "int64", (FIELDS,), cardinality=FIELDS * CARDINALITY + 1)
    return model, [wide, Input("deeptabular", "float32", (FIELDS + DENSE,), cardinality=tuple(bounds))]


# torchrec: the dense parts over plain tables -------------------------------------------------------------------------------------------


class TorchRec(nn.Module):
    """torchrec's DLRM or DLRM_DCN at small sizes, one id a feature; its embedding collection as plain bags."""

    def __init__(self, crossed: bool) -> None:
        super().__init__()
        from torchrec.models.dlrm import DenseArch, InteractionArch, InteractionDCNArch, OverArch
        from torchrec.modules.crossnet import LowRankCrossNet

        self.tables = nn.ModuleList(nn.EmbeddingBag(CARDINALITY, WIDTH, mode="sum") for _ in NAMES)
        self.dense_arch = DenseArch(DENSE, [64, WIDTH])
        if crossed:
            width = (FIELDS + 1) * WIDTH
            self.inter_arch: nn.Module = InteractionDCNArch(FIELDS, LowRankCrossNet(width, num_layers=3, low_rank=32))
        else:
            width = WIDTH + FIELDS * (FIELDS + 1) // 2
            self.inter_arch = InteractionArch(FIELDS)
        self.over_arch = OverArch(width, [128, 64, 1])

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        sparse = torch.stack([bag(ids[:, i : i + 1]) for i, bag in enumerate(self.tables)], dim=1)
        return self.over_arch(self.inter_arch(self.dense_arch(dense), sparse)).squeeze(-1)


def _torchrec(crossed: bool) -> tuple[nn.Module, Sequence[Input]]:
    return TorchRec(crossed), [Input("dense", "float32", (DENSE,)), Input("ids", "int64", (FIELDS,), cardinality=CARDINALITY)]


def _family(name: str) -> tuple[nn.Module, Sequence[Input]]:
    """One of `families.py`, which are plain PyTorch."""
    fields = Fields((CARDINALITY,) * FIELDS, DENSE, tuple(range(FIELDS // 2)), (0, 1), item=FIELDS - 1)
    specs = [Input("ids", "int64", (FIELDS,), cardinality=CARDINALITY), Input("dense", "float32", (DENSE,))]
    history = [Input("history", "int64", (10,), cardinality=CARDINALITY)] if name in WITH_HISTORY else []
    return FAMILIES[name](fields), [*specs, *history]


def entries() -> Iterator[Entry]:
    """Every model, library by library."""

    def rows(library: str, build: Callable[..., Any], models: Sequence[tuple[str, str, dict[str, Any]]]) -> Iterator[Entry]:
        for told, name, options in models:
            yield Entry(library, told, functools.partial(build, name, **options))

    single = {"linear": False}
    yield from rows(
        "deepctr-torch",
        _deepctr,
        [(n, n, {}) for n in ("WDL", "DeepFM", "xDeepFM", "AFM", "DIFM", "IFM", "AutoInt")]
        + [("DCN", "DCN", {}), ("DCN, matrix", "DCN", {"cross_parameterization": "matrix"}), ("DCNMix", "DCNMix", {})]
        + [(f"FiBiNET, {kind}", "FiBiNET", {"bilinear_type": kind}) for kind in ("interaction", "each", "all")]
        + [("NFM", "NFM", {}), ("MLR", "MLR", {}), ("ONN", "ONN", {}), ("PNN", "PNN", single)]
        + [("PNN, outer", "PNN", {**single, "use_outter": True}), ("CCPM", "CCPM", {}), ("AFN", "AFN", {})]
        + [("DIN", "DIN", {"history": True, "att_weight_normalization": True})]
        + [(f"DIEN, {kind}", "DIEN", {"history": True, "gru_type": kind}) for kind in ("GRU", "AIGRU", "AGRU", "AUGRU")]
        + [("DIEN, negative sampling", "DIEN", {"history": True, "gru_type": "AUGRU", "use_negsampling": True})]
        + [(n, n, single) for n in ("SharedBottom", "ESMM", "MMOE", "PLE")],
    )
    yield from (Entry("burnish's benchmarks", name, functools.partial(_family, name)) for name in FAMILIES)
    yield from rows("torchrec", lambda name, **_: _torchrec(name == "DLRM_DCN"), [("DLRM", "DLRM", {}), ("DLRM_DCN", "DLRM_DCN", {})])
    ranking = ("WideDeep", "DeepFM", "DCN", "DCNv2", "EDCN", "AFM", "FiBiNet", "DeepFFM", "FatDeepFFM", "BST", "DIN", "DIEN", "AutoInt")
    multi = ("SharedBottom", "ESMM", "MMOE", "PLE", "AITM")
    yield from rows("torch-rechub", _rechub, [(n, n, {}) for n in ranking] + [(n, n, {"module": "multi_task"}) for n in multi])
    tabular = ("TabMlp", "TabResnet", "TabNet", "ContextAttentionMLP", "SelfAttentionMLP", "TabTransformer", "SAINT")
    attend = {"pairs": True}
    options: dict[str, dict[str, Any]] = {n: attend for n in ("ContextAttentionMLP", "SelfAttentionMLP", "TabTransformer", "SAINT")}
    options |= {n: attend for n in ("FTTransformer", "TabFastFormer", "TabPerceiver")}
    options["TabNet"] = {"ghost_bn": False}  # batches of a batch, which only training needs
    rec: list[tuple[str, str, dict[str, Any]]] = [
        ("DeepFM", "DeepFactorizationMachine", {"num_factors": WIDTH, "mlp_hidden_dims": [128, 64]}),
        ("DeepFFM", "DeepFieldAwareFactorizationMachine", {"num_factors": 8, "mlp_hidden_dims": [128, 64], "dense": False}),
        ("xDeepFM", "ExtremeDeepFactorizationMachine", {"input_dim": WIDTH, "cin_layer_dims": [32, 16], "mlp_hidden_dims": [128, 64]}),
        ("DCN", "DeepCrossNetwork", {"pairs": False}),
        ("DCNv2", "DeepCrossNetworkV2", {"pairs": False}),
        ("GDCN", "GatedDeepCrossNetwork", {"pairs": False}),
        ("AutoInt", "AutoInt", {"input_dim": WIDTH, "embed_continuous_method": "standard"}),
        ("AutoInt+", "AutoIntPlus", {"input_dim": WIDTH, "embed_continuous_method": "standard"}),
    ]
    yield from rows(
        "pytorch-widedeep",
        _widedeep,
        [(n, n, options.get(n, {})) for n in (*tabular, "FTTransformer", "TabFastFormer", "TabPerceiver")]
        + [(told, name, {"rec": True, **more}) for told, name, more in rec],
    )
