"""Trains the rankers of `families.py` on real rows, each kept under data/rankers/ as soon as it is done.

    python benchmarks/rankers.py                     all that are missing, one after another
    python benchmarks/rankers.py "DIN" "MovieLens-100K: DeepFM"

Complete Journey: 1.6 million rows of the training weeks, validated on every other basket of the weeks after them. MovieLens-100K: for
each user the last fifth of the ratings validates. Calibration rows are training rows.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn

import burnish
from burnish.inputs import Input
from burnish.job import Job
from families import FAMILIES, TWO_LABELS, WITH_HISTORY, Fields
from models import ROOT, Subject, make_movielens

OUT = ROOT / "data" / "rankers"
JOURNEY, FILMS = "Complete Journey", "MovieLens-100K"
FOLDERS = {JOURNEY: ROOT / "examples" / "complete_journey", FILMS: ROOT / "benchmarks" / "movielens"}
ON_FILMS = ("DeepFM", "AutoInt", "FinalMLP", "MaskNet")  # beside the demo's DCN-v2; small data, so few
HISTORY = 10  # past purchases
EPOCHS, BATCH, ROWS = {JOURNEY: 1, FILMS: 4}, {JOURNEY: 4096, FILMS: 512}, {JOURNEY: 1_640_000, FILMS: None}
LARGE = ("xDeepFM", "FiBiNET")  # take long for what they compute: half of the rows, and batches that stay in cache
RATE, TABLE_RATE = 1e-3, {JOURNEY: 2e-2, FILMS: 3e-3}


def names() -> list[str]:
    """`DATA: FAMILY` of all there are."""
    return [f"{JOURNEY}: {name}" for name in FAMILIES] + [f"{FILMS}: {name}" for name in ON_FILMS]


@dataclass(frozen=True)
class Rows:
    """`table` as a module is called, by input name; `labels` (N,), or (N, 2) where a first purchase is judged too; `requests` (N,)."""

    table: dict[str, np.ndarray]
    labels: np.ndarray
    requests: np.ndarray

    def take(self, index: np.ndarray) -> Rows:
        return Rows({name: array[index] for name, array in self.table.items()}, self.labels[index], self.requests[index])


class Data:
    """One data set as the families take it."""

    def __init__(self, name: str) -> None:
        if name == FILMS:
            make_movielens()
        self.name, self.job = name, Job.read(FOLDERS[name] / "job.toml")
        ids, dense = (next(spec for spec in self.job.signature if spec.name == wanted) for wanted in ("ids", "dense"))
        self.columns = self.job.columns
        cardinality = self._cardinality()
        request_ids, request_dense = (tuple(i for i, side in enumerate(spec.side) if side == "request") for spec in (ids, dense))
        item = self.columns["ids"].index("product_id" if name == JOURNEY else "movie_id")
        self.fields = Fields(cardinality, dense.columns, request_ids, request_dense, item)
        past = Input("history", "int64", (HISTORY,), "request", cardinality[item])
        self.inputs = (Input("ids", "int64", ids.shape, ids.side, cardinality), dense, past)

    def _cardinality(self) -> tuple[int, ...]:
        known = pl.read_json(self.job.base / self.job.data.train.replace("train.parquet", "columns.json"))["cardinality"].to_list()[0]
        return tuple(known.values() if isinstance(known, dict) else known)

    def signature(self, family: str) -> tuple[Input, ...]:
        return self.inputs if family in WITH_HISTORY else self.inputs[:2]

    def rows(self, split: str, family: str) -> Rows:
        """Of the train rows those that are learned from, of the validation rows those of every other request where there are many."""
        frame = pl.read_parquet(self.job.split_path(split))  # type: ignore[arg-type]
        request = self.job.data.request if self.name == FILMS else "basket_id"
        if split == "train" and ROWS[self.name]:
            frame = frame.sample(ROWS[self.name], seed=0, shuffle=True)
        if split == "validation" and self.name == JOURNEY:
            frame = frame.filter(pl.col(request).rank("dense") % 2 == 0)
        table = {
            "ids": np.ascontiguousarray(frame.select(pl.col(self.columns["ids"]).cast(pl.Int64)).to_numpy()),
            "dense": np.ascontiguousarray(frame.select(pl.col(self.columns["dense"]).cast(pl.Float32)).to_numpy()),
        }
        labels = frame["label"].to_numpy().astype(np.float32)
        if family in WITH_HISTORY:
            baskets, past = purchases()
            table["history"] = past[np.searchsorted(baskets, frame[request].to_numpy())]
        if family in TWO_LABELS:
            labels = np.stack([labels, labels * (frame["bought_before"].to_numpy() == 0)], axis=1)
        return Rows(table, labels, frame[request].to_numpy())


@functools.cache
def purchases() -> tuple[np.ndarray, np.ndarray]:
    """Basket ids (B,), sorted, and the products its household had bought last before each: (B, HISTORY), the latest last, 0 for none."""
    kept = OUT / "histories.npz"
    if not kept.exists():
        files = [ROOT / "data" / "complete_journey" / f"{split}.parquet" for split in ("train", "validation")]
        frame = pl.concat([pl.read_parquet(file, columns=["basket_id", "household_id", "product_id", "label"]) for file in files])
        baskets = frame.group_by("basket_id", maintain_order=True).agg(
            pl.col("household_id").first(), bought=pl.col("product_id").filter(pl.col("label") == 1)
        )
        past: dict[int, list[int]] = {}
        found = np.zeros((len(baskets), HISTORY), np.int64)
        for row, (_, household, bought) in zip(found, baskets.iter_rows()):
            own = past.setdefault(household, [])
            if own:
                row[-len(own) :] = own
            past[household] = [*own, *bought][-HISTORY:]
        order = np.argsort(baskets["basket_id"].to_numpy())
        OUT.mkdir(parents=True, exist_ok=True)
        np.savez(kept, baskets=baskets["basket_id"].to_numpy()[order], past=found[order])
    held = np.load(kept)
    return held["baskets"], held["past"]


def path(name: str) -> Path:
    return OUT / (name.replace(": ", "_").replace(" ", "_").replace("&", "and") + ".pt")


def train(name: str, seed: int = 0) -> None:
    """Train `DATA: FAMILY` and keep its weights; printed are the seconds and the validation AUC."""
    began = time.monotonic()
    data_name, family = name.split(": ")
    data = Data(data_name)
    rows = data.rows("train", family)
    torch.manual_seed(seed)
    model = FAMILIES[family](data.fields)
    tables = {id(one) for module in model.modules() if isinstance(module, nn.Embedding) for one in module.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in tables], "lr": TABLE_RATE[data_name]},
        {"params": [p for p in model.parameters() if id(p) not in tables], "lr": RATE, "weight_decay": 0.01},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0 if data_name == JOURNEY else 0.05)
    order = np.concatenate([np.random.default_rng(seed + e).permutation(len(rows.labels)) for e in range(EPOCHS[data_name])])
    order, batch = (order[: len(order) // 2], 1024) if family in LARGE else (order, BATCH[data_name])
    steps = len(order) // batch
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for step in range(steps):
        part = rows.take(order[step * batch : (step + 1) * batch])
        scores = model(*(torch.from_numpy(a) for a in part.table.values()))
        loss = nn.functional.binary_cross_entropy(scores, torch.from_numpy(part.labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds = time.monotonic() - began
    OUT.mkdir(parents=True, exist_ok=True)
    part_file = path(name).with_suffix(f".{os.getpid()}.part")
    torch.save(model.state_dict(), part_file)
    os.replace(part_file, path(name))
    model.eval()
    judged = data.rows("validation", family)
    found = [score(model, judged.table)]
    aucs = [auc(y, s) for y, s in zip(judged.labels.reshape(len(judged.labels), -1).T, found[0].reshape(len(judged.labels), -1).T)]
    print(f"{name}: validation AUC {', '.join(f'{a:.4f}' for a in aucs)}, {seconds:.0f} s, loss {loss.item():.4f}", flush=True)


def score(model: nn.Module, table: dict[str, np.ndarray], chunk: int = 8192) -> np.ndarray:
    with torch.inference_mode():
        parts = [model(*(torch.from_numpy(a[i : i + chunk]) for a in table.values())) for i in range(0, len(table["ids"]), chunk)]
    return torch.cat(parts).numpy()


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    positive = labels > 0
    return (ranks[positive].mean() - (positive.sum() + 1) / 2) / (~positive).sum()


def load(name: str) -> nn.Module:
    """The trained module, trained now when it is missing."""
    if not path(name).exists():
        train(name)
    data_name, family = name.split(": ")
    model = FAMILIES[family](Data(data_name).fields)
    model.load_state_dict(torch.load(path(name), weights_only=True))
    return model.eval()


def subject(name: str) -> Subject:
    """The trained ranker, its Graph, and its rows."""
    module = load(name)
    data_name, family = name.split(": ")
    data = Data(data_name)
    judged, calibration = data.rows("validation", family), data.rows("calibration", family)
    graph = burnish.capture(module, list(data.signature(family)))
    return Subject(f"{family} on {data_name}", module, graph, calibration.table, judged.table, judged.labels, judged.requests)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=names())
    torch.set_num_threads(1)
    for wanted in parser.parse_args().names:
        if not path(wanted).exists():
            train(wanted)
