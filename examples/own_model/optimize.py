"""A model of one's own, from trained to decided: python examples/own_model/optimize.py OUT. Its rows are random: put yours here."""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn

import burnish

USERS, ITEMS = 1000, 5000
JOB = """
model = {load = "optimize.py:load"}
data = {calibration = "calibration.parquet", validation = "validation.parquet", label = "clicked", request = "user"}
objective = {p99_ms = 10, qps = 5000, candidates = 64}
search = {backends = ["native", "onnxruntime"], recipes = ["int8-tables"]}  # left out: all that burnish knows, some minutes
hosts = [{name = "this machine", price_per_hour = 0.10}]

[inputs]
user = {dtype = "int64", side = "request"}
item = {dtype = "int64"}
dense = {columns = ["price", "age"]}
"""


class Ranker(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, 32), nn.Embedding(ITEMS, 32)
        self.deep = nn.Sequential(nn.Linear(66, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, user, item, dense):
        return torch.sigmoid(12 * self.deep(torch.cat([self.user(user), self.item(item), dense], dim=1))).squeeze(1)


def load():
    torch.manual_seed(0)
    return Ranker().eval()  # yours: load_state_dict(...) first


def rows(n, seed):
    rng = np.random.default_rng(seed)
    table = {"user": rng.integers(0, USERS, n), "item": rng.integers(0, ITEMS, n)}
    dense = rng.random((n, 2), np.float32)
    with torch.no_grad():
        labels = torch.bernoulli(load()(*map(torch.from_numpy, (table["user"], table["item"], dense)))).numpy()
    return pl.DataFrame(table | {"price": dense[:, 0], "age": dense[:, 1], "clicked": labels})


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    (out / "job.toml").write_text(JOB.replace("optimize.py", str(Path(__file__).resolve())))
    rows(4096, 1).write_parquet(out / "calibration.parquet")
    rows(60_000, 2).write_parquet(out / "validation.parquet")
    result = burnish.optimize(out / "job.toml", out / "out")
    print(*result.plan.sentences, out / "out" / "report.html", sep="\n")
