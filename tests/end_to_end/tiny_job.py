"""A whole job in a folder: a small DCN-v2, and rows whose labels are drawn from its own probabilities: it ranks as well as can be."""

from pathlib import Path

import numpy as np

CARDINALITY = [50, 7, 3, 200, 11, 5]  # three ids of the request, three of the candidate

RANKER = '''
import torch
from torch import nn


class DCN(nn.Module):
    """forward(ids (N, 6) int64, dense (N, 4) float32) -> probability (N,)"""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, 8) for n in [50, 7, 3, 200, 11, 5])
        self.cross = nn.Linear(52, 52)
        self.deep = nn.Sequential(nn.Linear(52, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Linear(52 + 16, 1)

    def forward(self, ids, dense):
        x0 = torch.cat([*(table(ids[:, i]) for i, table in enumerate(self.tables)), dense], dim=1)
        x = x0 * self.cross(x0) + x0
        return torch.sigmoid(3 * self.head(torch.cat([x, self.deep(x0)], dim=1))).squeeze(1)


def load():
    torch.manual_seed(0)
    return DCN().eval()
'''

JOB = """
[model]
load = "ranker.py:load"

[inputs.ids]
dtype = "int64"
columns = ["user", "city", "device", "item", "genre", "age"]
side = ["request", "request", "request", "candidate", "candidate", "candidate"]

[inputs.dense]
columns = ["visits", "price", "seen", "days"]
side = ["request", "candidate", "candidate", "candidate"]

[data]
train = "train.parquet"
validation = "validation.parquet"
label = "click"
request = "request"
slices = ["device"]

[objective]
p99_ms = 100
qps = 2000
candidates = 16

[accuracy]
max_drop = 0.01

[search]
budget_minutes = 2
backends = ["native", "openvino", "onnxruntime"]

[[hosts]]
name = "this machine"
price_per_hour = 0.2
cores = 4
"""


def write(folder: Path, job: str = JOB, requests: int = 150, candidates: int = 20) -> Path:
    """The path of job.toml, beside the model and the rows."""
    import polars as pl
    import torch

    (folder / "ranker.py").write_text(RANKER)
    scope: dict = {}
    exec(RANKER, scope)
    model = scope["load"]()
    for seed, split in enumerate(("train", "validation")):
        random = np.random.default_rng(seed)
        n = requests * candidates
        request = np.repeat(np.arange(requests), candidates)
        ids = np.stack(
            [random.integers(0, size, requests)[request] if i < 3 else random.integers(0, size, n) for i, size in enumerate(CARDINALITY)], 1
        )
        dense = random.normal(size=(n, 4)).astype(np.float32)
        dense[:, 0] = dense[request * candidates, 0]
        with torch.inference_mode():
            p = model(torch.from_numpy(ids), torch.from_numpy(dense)).numpy()
        columns = dict(zip(["user", "city", "device", "item", "genre", "age"], ids.T)) | dict(
            zip(["visits", "price", "seen", "days"], dense.T)
        )
        pl.DataFrame(columns | {"click": (random.random(n) < p).astype(np.int8), "request": request}).write_parquet(
            folder / f"{split}.parquet"
        )
    (folder / "job.toml").write_text(job)
    return folder / "job.toml"
