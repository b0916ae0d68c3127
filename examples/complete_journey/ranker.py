"""A DCN-v2 in plain PyTorch over the Complete Journey data: 21 ids x 16 and 5 dense features, three full cross layers beside 512-256-128.

    python ranker.py DATA MODEL     trains on DATA/train.parquet for half an epoch and writes MODEL (state dict and sizes)

`load()` is what serving systems, and burnish, call to get the trained model.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent.parent / "data" / "complete_journey" / "dcn_v2.pt"


class DCNv2(nn.Module):
    """Wang et al. 2021, parallel form. forward(ids (N, 21) int64, dense (N, 5) float32) -> probability (N,)."""

    def __init__(self, cardinality: list[int], dense: int, width: int = 16, crosses: int = 3, hidden: tuple[int, ...] = (512, 256, 128)):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, width) for n in cardinality)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.05)
        d = len(cardinality) * width + dense
        self.cross = nn.ModuleList(nn.Linear(d, d) for _ in range(crosses))
        layers, last = [], d
        for n in hidden:
            layers += [nn.Linear(last, n), nn.ReLU()]
            last = n
        self.deep = nn.Sequential(*layers)
        self.head = nn.Linear(d + last, 1)

    def forward(self, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        embedded = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        x0 = x = torch.cat([*embedded, dense], dim=1)
        for layer in self.cross:
            x = x0 * layer(x) + x
        return torch.sigmoid(self.head(torch.cat([x, self.deep(x0)], dim=1))).squeeze(1)


def columns(data: Path) -> dict:
    return json.loads((data / "columns.json").read_text())


def tensors(file: Path, names: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    frame = pl.read_parquet(file)
    ids = frame.select(pl.col(names["request"] + names["candidate"]).cast(pl.Int64)).to_torch()
    return ids, frame.select(names["dense"]).to_torch(), frame["label"].to_torch().float()


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    positive = labels > 0
    return (ranks[positive].mean() - (positive.sum() + 1) / 2) / (~positive).sum()


def train(data: Path, out: Path, batch: int = 4096, epochs: float = 0.5, seed: int = 0) -> None:
    torch.manual_seed(seed)
    names = columns(data)
    ids, dense, labels = tensors(data / "train.parquet", names)
    sizes = {"cardinality": list(names["cardinality"].values()), "dense": len(names["dense"])}
    model = DCNv2(**sizes)
    tables = set(model.tables.parameters())
    others = [p for p in model.parameters() if p not in tables]
    optimizer = torch.optim.Adam([{"params": list(tables), "lr": 2e-2}, {"params": others, "lr": 1e-3}])
    order = torch.randperm(len(ids))[: int(len(ids) * epochs)]
    steps, start = len(order) // batch, time.time()
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for step in range(steps):
        rows = order[step * batch : (step + 1) * batch]
        loss = nn.functional.binary_cross_entropy(model(ids[rows], dense[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step + 1}/{steps}  loss {loss.item():.4f}  {time.time() - start:.0f} s", flush=True)
    torch.save({"sizes": sizes, "state": model.state_dict()}, out)
    ids, dense, labels = tensors(data / "validation.parquet", names)
    with torch.inference_mode():
        scores = torch.cat([model(i, d) for i, d in zip(ids.split(8192), dense.split(8192))])
    print(f"validation AUC {auc(labels.numpy(), scores.numpy()):.4f} on {len(labels):,} rows")


def load() -> nn.Module:
    """The trained model, ready to serve."""
    saved = torch.load(MODEL, weights_only=True)
    model = DCNv2(**saved["sizes"])
    model.load_state_dict(saved["state"])
    return model.eval()


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
