"""Rankers of many families in plain PyTorch, as small as a page allows, to be trained on real rows: FAMILIES has one entry each.

Each is called as forward(ids (N, F) int64, dense (N, D) float32[, history (N, L) int64]) and gives probabilities: (N,), or (N, 2) of a
purchase and of a purchase that is this household's first. A hidden net is 256-128 unless the family has a reason for another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HIDDEN = 16, (256, 128)


@dataclass(frozen=True)
class Fields:
    """What the columns are: how many values each id has, the number of dense columns, which of both belong to the request, and the
    id column whose table a history of past ids is read from."""

    cardinality: tuple[int, ...]
    dense: int
    request_ids: tuple[int, ...]
    request_dense: tuple[int, ...]
    item: int

    @property
    def features(self) -> int:
        return len(self.cardinality) * WIDTH + self.dense


def mlp(first: int, *widths: int, norm: bool = False) -> nn.Sequential:
    """Linears with ReLU between and behind them."""
    layers: list[nn.Module] = []
    for a, b in pairwise((first, *widths)):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)


class Embed(nn.Module):
    """ids (N, F) -> (N, F, width)"""

    def __init__(self, fields: Fields, width: int = WIDTH) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, width) for n in fields.cardinality)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)


class Ranker(nn.Module):
    """Embeddings, and all features in a row."""

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self.embed = Embed(fields)

    def features(self, ids: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F, WIDTH) and (N, features)"""
        e = self.embed(ids)
        return e, torch.cat([e.flatten(1), dense], dim=1)


class First(nn.Module):
    """The linear part: one weight an id and a dense feature -> (N, 1)"""

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self.ids, self.dense = Embed(fields, 1), nn.Linear(fields.dense, 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        return self.ids(ids).sum(1) + self.dense(dense)


def pairs(a: Tensor, b: Tensor) -> Tensor:
    """(N, F, W) twice -> (N, F (F - 1) / 2, W), products of a field of the first and each later one of the second."""
    return torch.cat([a[:, i : i + 1] * b[:, i + 1 :] for i in range(a.shape[1] - 1)], dim=1)


class DCNv1(Ranker):
    """Wang et al. 2017: cross layers x0 (w . x) + b + x, of a vector each, beside a deep net."""

    def __init__(self, fields: Fields, crosses: int = 3) -> None:
        super().__init__(fields)
        d = fields.features
        self.weights, self.biases = nn.Parameter(torch.randn(crosses, d) * d**-0.5), nn.Parameter(torch.zeros(crosses, d))
        self.deep, self.head = mlp(d, *HIDDEN), nn.Linear(d + HIDDEN[-1], 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        _, x0 = self.features(ids, dense)
        x = x0
        for w, b in zip(self.weights, self.biases):
            x = x0 * (x @ w).unsqueeze(1) + b + x
        return torch.sigmoid(self.head(torch.cat([x, self.deep(x0)], dim=1))).squeeze(1)


class DCNMix(Ranker):
    """Wang et al. 2021: cross layers whose matrix is a gated mixture of low ranks, before a deep net."""

    def __init__(self, fields: Fields, crosses: int = 2, experts: int = 2, rank: int = 32) -> None:
        super().__init__(fields)
        d = fields.features
        self.down = nn.ParameterList(nn.Parameter(torch.randn(experts, d, rank) * d**-0.5) for _ in range(crosses))
        self.core = nn.ParameterList(nn.Parameter(torch.randn(experts, rank, rank) * rank**-0.5) for _ in range(crosses))
        self.up = nn.ParameterList(nn.Parameter(torch.randn(experts, rank, d) * rank**-0.5) for _ in range(crosses))
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(d)) for _ in range(crosses))
        self.gates = nn.ModuleList(nn.Linear(d, experts, bias=False) for _ in range(crosses))
        self.deep, self.head = mlp(d, *HIDDEN), nn.Linear(HIDDEN[-1], 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        _, x0 = self.features(ids, dense)
        x = x0
        for down, core, up, bias, gate in zip(self.down, self.core, self.up, self.bias, self.gates):
            low = torch.tanh(torch.einsum("nd,edr->ner", x, down))
            low = torch.tanh(torch.einsum("ner,ers->nes", low, core))
            experts = x0.unsqueeze(1) * (torch.einsum("ner,erd->ned", low, up) + bias)
            x = torch.einsum("ned,ne->nd", experts, gate(x).softmax(1)) + x
        return torch.sigmoid(self.head(self.deep(x))).squeeze(1)


class GDCN(Ranker):
    """Wang et al. 2023: cross layers x0 * (W x + b) * sigmoid(G x) + x, before a deep net."""

    def __init__(self, fields: Fields, crosses: int = 2) -> None:
        super().__init__(fields)
        d = fields.features
        self.cross = nn.ModuleList(nn.Linear(d, d) for _ in range(crosses))
        self.gate = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in range(crosses))
        self.deep, self.head = mlp(d, *HIDDEN), nn.Linear(HIDDEN[-1], 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        _, x0 = self.features(ids, dense)
        x = x0
        for cross, gate in zip(self.cross, self.gate):
            x = x0 * cross(x) * torch.sigmoid(gate(x)) + x
        return torch.sigmoid(self.head(self.deep(x))).squeeze(1)


class DLRM(Ranker):
    """Naumov et al. 2019: a bottom net for dense features, dot products of all pairs, a top net."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        n = len(fields.cardinality) + 1
        self.bottom, self.top = mlp(fields.dense, 64, WIDTH), mlp(WIDTH + n * (n - 1) // 2, *HIDDEN)
        self.head = nn.Linear(HIDDEN[-1], 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        x = self.bottom(dense)
        both = torch.cat([x.unsqueeze(1), self.embed(ids)], dim=1)
        i, j = torch.tril_indices(both.shape[1], both.shape[1], offset=-1)
        dots = torch.bmm(both, both.transpose(1, 2))[:, i, j]
        return torch.sigmoid(self.head(self.top(torch.cat([x, dots], dim=1)))).squeeze(1)


class WideDeep(Ranker):
    """Cheng et al. 2016."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self.first, self.deep = First(fields), mlp(fields.features, *HIDDEN)
        self.head = nn.Linear(HIDDEN[-1], 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        _, x = self.features(ids, dense)
        return torch.sigmoid(self.first(ids, dense) + self.head(self.deep(x))).squeeze(1)


class DeepFM(WideDeep):
    """Guo et al. 2017: Wide & Deep with a factorization machine over the same embeddings."""

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        e, x = self.features(ids, dense)
        second = 0.5 * (e.sum(1) ** 2 - (e**2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.first(ids, dense) + second + self.head(self.deep(x))).squeeze(1)


class XDeepFM(Ranker):
    """Lian et al. 2018: a compressed interaction network of outer products over fields, a deep net and a linear part."""

    def __init__(self, fields: Fields, maps: tuple[int, ...] = (16, 16)) -> None:
        super().__init__(fields)
        n = len(fields.cardinality)
        self.cin = nn.ModuleList(nn.Linear(n * last, out) for last, out in pairwise((n, *maps)))
        self.first, self.deep = First(fields), mlp(fields.features, *HIDDEN)
        self.head = nn.Linear(HIDDEN[-1] + sum(maps), 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        e, x = self.features(ids, dense)
        fields = e.transpose(1, 2)
        maps, pooled = fields, []
        for layer in self.cin:
            outer = maps.unsqueeze(3) * fields.unsqueeze(2)  # (N, WIDTH, maps, F)
            maps = F.relu(layer(outer.flatten(2)))
            pooled.append(maps.sum(1))
        return torch.sigmoid(self.first(ids, dense) + self.head(torch.cat([*pooled, self.deep(x)], dim=1))).squeeze(1)


class AutoInt(Ranker):
    """Song et al. 2019: self-attention over fields, beside a deep net."""

    def __init__(self, fields: Fields, layers: int = 2, heads: int = 2, attention: int = 16) -> None:
        super().__init__(fields)
        ins = (WIDTH, *([attention] * (layers - 1)))
        self.qkvr = nn.ModuleList(nn.Linear(k, 4 * attention, bias=False) for k in ins)
        self.heads, self.deep = heads, mlp(fields.features, *HIDDEN)
        self.head = nn.Linear(len(fields.cardinality) * attention + HIDDEN[-1], 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        y, x = self.features(ids, dense)
        for layer in self.qkvr:
            q, k, v, residual = layer(y).chunk(4, dim=2)
            q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
            met = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            y = F.relu(met + residual)
        return torch.sigmoid(self.head(torch.cat([y.flatten(1), self.deep(x)], dim=1))).squeeze(1)


class FiBiNET(Ranker):
    """Huang et al. 2019: fields weighed by squeeze and excitation, bilinear products of all pairs, a deep net."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        n = len(fields.cardinality)
        self.excite = nn.Sequential(nn.Linear(n, max(2, n // 3)), nn.ReLU(), nn.Linear(max(2, n // 3), n), nn.ReLU())
        self.bilinear = nn.Linear(WIDTH, WIDTH, bias=False)
        self.deep, self.head = mlp(2 * n * (n - 1) // 2 * WIDTH + fields.dense, 128, 64), nn.Linear(64, 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        e = self.embed(ids)
        weighed = e * self.excite(e.mean(2)).unsqueeze(2)
        met = [pairs(self.bilinear(x), x).flatten(1) for x in (e, weighed)]
        return torch.sigmoid(self.head(self.deep(torch.cat([*met, dense], dim=1)))).squeeze(1)


class PNN(Ranker):
    """Qu et al. 2016: inner products of all pairs beside the features, a deep net."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        n = len(fields.cardinality)
        self.deep, self.head = mlp(fields.features + n * (n - 1) // 2, *HIDDEN), nn.Linear(HIDDEN[-1], 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        e, x = self.features(ids, dense)
        inner = pairs(e, e).sum(2)
        return torch.sigmoid(self.head(self.deep(torch.cat([x, inner], dim=1)))).squeeze(1)


class NFM(Ranker):
    """He & Chua 2017: the factorization machine's sum of pairs as a vector, BatchNorm, a deep net; and a linear part."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self.first, self.norm = First(fields), nn.BatchNorm1d(WIDTH)
        self.deep, self.head = mlp(WIDTH + fields.dense, *HIDDEN, norm=True), nn.Linear(HIDDEN[-1], 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        e = self.embed(ids)
        second = self.norm(0.5 * (e.sum(1) ** 2 - (e**2).sum(1)))
        return torch.sigmoid(self.first(ids, dense) + self.head(self.deep(torch.cat([second, dense], dim=1)))).squeeze(1)


class MaskNet(Ranker):
    """Wang et al. 2021 (arXiv:2102.07619), parallel: blocks of LayerNorm and a mask that the features themselves make."""

    def __init__(self, fields: Fields, blocks: int = 3, width: int = 64) -> None:
        super().__init__(fields)
        d = fields.features
        self.norm = nn.LayerNorm(d)
        self.masks = nn.ModuleList(nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, d)) for _ in range(blocks))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(d, width), nn.LayerNorm(width), nn.ReLU()) for _ in range(blocks))
        self.deep, self.head = mlp(blocks * width, 128), nn.Linear(128, 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        _, x = self.features(ids, dense)
        normed = self.norm(x)
        met = torch.cat([block(normed * mask(x)) for block, mask in zip(self.blocks, self.masks)], dim=1)
        return torch.sigmoid(self.head(self.deep(met))).squeeze(1)


class FinalMLP(Ranker):
    """Mao et al. 2023: two nets over gated features, that of the request and that of the candidate, and a bilinear product by heads."""

    def __init__(self, fields: Fields, heads: int = 4) -> None:
        super().__init__(fields)
        d, out = fields.features, HIDDEN[-1]
        sides = (len(fields.request_ids), len(fields.cardinality) - len(fields.request_ids))
        self.register_buffer("own", torch.tensor(fields.request_ids), persistent=False)
        self.register_buffer("other", torch.tensor([i for i in range(sum(sides)) if i not in fields.request_ids]), persistent=False)
        self.gates = nn.ModuleList(nn.Sequential(nn.Linear(n * WIDTH, 64), nn.ReLU(), nn.Linear(64, d)) for n in sides)
        self.nets = nn.ModuleList(mlp(d, *HIDDEN) for _ in range(2))
        self.linears = nn.ModuleList(nn.Linear(out, 1) for _ in range(2))
        self.bilinear, self.heads = nn.Parameter(torch.randn(heads, out // heads, out // heads) * 0.1), heads

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        e, x = self.features(ids, dense)
        sides = (e[:, self.own].flatten(1), e[:, self.other].flatten(1))
        a, b = (net(x * 2 * torch.sigmoid(gate(side))) for net, gate, side in zip(self.nets, self.gates, sides))
        logit = self.linears[0](a) + self.linears[1](b)
        left, right = a.unflatten(1, (self.heads, -1)), b.unflatten(1, (self.heads, -1))
        met = torch.einsum("nhi,hij->nhj", left, self.bilinear) * right
        return torch.sigmoid(logit.squeeze(1) + met.sum((1, 2)))


class MMoE(Ranker):
    """Ma et al. 2018: experts under a gate a task; two outputs."""

    def __init__(self, fields: Fields, experts: int = 4) -> None:
        super().__init__(fields)
        d = fields.features
        self.experts = nn.ModuleList(mlp(d, 128, 64) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(d, experts) for _ in range(2))
        self.towers = nn.ModuleList(nn.Sequential(*mlp(64, 32), nn.Linear(32, 1)) for _ in range(2))

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        _, x = self.features(ids, dense)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        mixed = [(gate(x).softmax(1).unsqueeze(2) * experts).sum(1) for gate in self.gates]
        return torch.sigmoid(torch.cat([tower(m) for tower, m in zip(self.towers, mixed)], dim=1))


class ESMM(Ranker):
    """Ma et al. 2018 (arXiv:1804.07931): two nets over shared embeddings; the second output is the product of both probabilities."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self.nets = nn.ModuleList(nn.Sequential(*mlp(fields.features, *HIDDEN), nn.Linear(HIDDEN[-1], 1)) for _ in range(2))

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        _, x = self.features(ids, dense)
        buys, first = (torch.sigmoid(net(x)) for net in self.nets)
        return torch.cat([buys, buys * first], dim=1)


class TwoTower(Ranker):
    """A net of the request's columns, one of the candidate's, and their dot product."""

    def __init__(self, fields: Fields, out: int = 64) -> None:
        super().__init__(fields)
        self.own = (list(fields.request_ids), list(fields.request_dense))
        self.other = tuple([i for i in range(n) if i not in own] for n, own in zip((len(fields.cardinality), fields.dense), self.own))
        sizes = [len(ids) * WIDTH + len(dense) for ids, dense in (self.own, self.other)]
        self.towers = nn.ModuleList(nn.Sequential(*mlp(size, *HIDDEN), nn.Linear(HIDDEN[-1], out)) for size in sizes)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        e = self.embed(ids)
        sides = (torch.cat([e[:, i].flatten(1), dense[:, d]], dim=1) for i, d in (self.own, self.other))
        a, b = (tower(side) for tower, side in zip(self.towers, sides))
        return torch.sigmoid((a * b).sum(1) + self.bias)


class DIN(Ranker):
    """Zhou et al. 2018: attention of the candidate over past purchases, id 0 being none; PReLU."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self.item = fields.item
        self.attend = nn.Sequential(nn.Linear(4 * WIDTH, 36), nn.PReLU(36), nn.Linear(36, 1))
        self.deep = nn.Sequential(nn.Linear(fields.features + WIDTH, 256), nn.PReLU(256), nn.Linear(256, 128), nn.PReLU(128))
        self.head = nn.Linear(128, 1)

    def forward(self, ids: Tensor, dense: Tensor, history: Tensor) -> Tensor:
        e, x = self.features(ids, dense)
        keys = self.embed.tables[self.item](history)
        query = e[:, self.item].unsqueeze(1).expand_as(keys)
        met = torch.cat([query, keys, query - keys, query * keys], dim=2)
        scores = self.attend(met.flatten(0, 1)).view(-1, history.shape[1])
        weights = torch.where(history > 0, scores, torch.full_like(scores, -1e9)).softmax(1)
        interest = (weights.unsqueeze(2) * keys).sum(1)
        return torch.sigmoid(self.head(self.deep(torch.cat([x, interest], dim=1)))).squeeze(1)


class BST(Ranker):
    """Chen et al. 2019: a transformer layer over past purchases and the candidate."""

    def __init__(self, fields: Fields, length: int = 10) -> None:
        super().__init__(fields)
        self.item = fields.item
        self.place = nn.Parameter(torch.randn(length + 1, WIDTH) * 0.05)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.deep, self.head = mlp(fields.features + (length + 1) * WIDTH, *HIDDEN), nn.Linear(HIDDEN[-1], 1)

    def forward(self, ids: Tensor, dense: Tensor, history: Tensor) -> Tensor:
        e, x = self.features(ids, dense)
        steps = torch.cat([self.embed.tables[self.item](history), e[:, self.item].unsqueeze(1)], dim=1)
        met = self.layer(steps + self.place)
        return torch.sigmoid(self.head(self.deep(torch.cat([x, met.flatten(1)], dim=1)))).squeeze(1)


FAMILIES: dict[str, Callable[[Fields], nn.Module]] = {
    "DCN-v1": DCNv1,
    "DCN-mix": DCNMix,
    "GDCN": GDCN,
    "DLRM": DLRM,
    "DeepFM": DeepFM,
    "xDeepFM": XDeepFM,
    "Wide & Deep": WideDeep,
    "AutoInt": AutoInt,
    "FiBiNET": FiBiNET,
    "PNN": PNN,
    "NFM": NFM,
    "MaskNet": MaskNet,
    "FinalMLP": FinalMLP,
    "MMoE": MMoE,
    "ESMM": ESMM,
    "two-tower": TwoTower,
    "DIN": DIN,
    "BST": BST,
}
WITH_HISTORY = ("DIN", "BST")
TWO_LABELS = ("MMoE", "ESMM")
