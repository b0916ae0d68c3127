"""Rankers of every family, small: MODELS has one row each (how to build it, what it is called with)."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from burnish.inputs import Input

FIELDS, WIDTH, DENSE, STEPS, VOCAB = 5, 8, 4, 6, 50
dense = Input("dense", "float32", (DENSE,))
ids = Input("ids", "int64", (FIELDS,))
history = Input("history", "int64", (STEPS,))
target = Input("target", "int64", ())


def mlp(*widths, act=nn.ReLU):
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


class Fields(nn.Module):
    """(rows, FIELDS) ids -> (rows, FIELDS, WIDTH), a table a field."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(VOCAB + i, width) for i in range(FIELDS))

    def forward(self, ids):
        return torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)


class DLRM(nn.Module):
    def __init__(self, stacked_first=False):
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(VOCAB, WIDTH, mode="sum") for _ in range(FIELDS))
        self.bottom, self.top = mlp(DENSE, 16, WIDTH), mlp(WIDTH + (FIELDS + 1) * FIELDS // 2, 16, 1)
        self.stacked_first = stacked_first

    def forward(self, dense, ids):
        x = self.bottom(dense)
        if self.stacked_first:  # (FIELDS, rows, WIDTH), as some write it
            e = torch.stack([bag(ids[:, i : i + 1]) for i, bag in enumerate(self.bags)], dim=0).transpose(0, 1)
        else:
            e = torch.stack([bag(ids[:, i].unsqueeze(1)) for i, bag in enumerate(self.bags)], dim=1)
        both = torch.cat([x.unsqueeze(1), e], dim=1)
        dots = torch.bmm(both, both.transpose(1, 2))
        i, j = torch.tril_indices(FIELDS + 1, FIELDS + 1, offset=-1)
        return torch.sigmoid(self.top(torch.cat([x, dots[:, i, j]], dim=1))).squeeze(1)


class DCNv2(nn.Module):
    def __init__(self, rank=None):
        super().__init__()
        width = FIELDS * WIDTH + DENSE
        self.fields, self.deep = Fields(), mlp(width, 32, 16)
        if rank is None:
            self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        else:
            self.cross = nn.ModuleList(nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width)) for _ in range(3))
        self.out = nn.Linear(width + 16, 1)

    def forward(self, dense, ids):
        x0 = torch.cat([dense, self.fields(ids).flatten(1)], dim=-1)
        x = x0
        for layer in self.cross:
            x = x0 * layer(x) + x
        return self.out(torch.cat([x, self.deep(x0)], dim=1)).sigmoid()


class DeepFM(nn.Module):
    """One merged table with offsets, the FM trick, a view(-1, d) and back."""

    def __init__(self):
        super().__init__()
        self.register_buffer("offsets", torch.arange(FIELDS) * VOCAB)
        self.table, self.first = nn.Embedding(FIELDS * VOCAB, WIDTH), nn.Embedding(FIELDS * VOCAB, 1)
        self.shared, self.deep = nn.Linear(WIDTH, WIDTH), mlp(FIELDS * WIDTH, 16, 1, act=nn.GELU)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, ids):
        at = ids + self.offsets
        e = self.table(at)
        e = self.shared(e.view(-1, WIDTH)).view(-1, FIELDS, WIDTH)
        fm = 0.5 * (e.sum(1) ** 2 - (e**2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.bias + self.first(at).sum(1) + fm + self.deep(e.flatten(1)))


class Dice(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.alpha = nn.BatchNorm1d(width, eps=1e-8, affine=False), nn.Parameter(torch.zeros(width) + 0.1)

    def forward(self, x):
        p = torch.sigmoid(self.norm(x))
        return self.alpha * (1 - p) * x + p * x


class DIN(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, WIDTH, padding_idx=0)
        self.attend = nn.Sequential(nn.Linear(4 * WIDTH, 16), Dice(16), nn.Linear(16, 1))
        self.deep = nn.Sequential(nn.Linear(2 * WIDTH, 16), nn.BatchNorm1d(16), nn.PReLU(), nn.Dropout(0.5), nn.Linear(16, 1))

    def forward(self, history, target):
        keys, query = self.table(history), self.table(target).unsqueeze(1)
        queries = query.expand(-1, keys.shape[1], -1)
        x = torch.cat([queries, keys, queries - keys, queries * keys], dim=-1)
        score = self.attend(x.view(-1, 4 * WIDTH)).view(-1, 1, STEPS)
        mask = (history > 0).unsqueeze(1)
        score = torch.where(mask, score, torch.full_like(score, -(2.0**32) + 1))
        pooled = torch.matmul(torch.softmax(score / WIDTH**0.5, dim=-1), keys).squeeze(1)
        return torch.sigmoid(self.deep(torch.cat([pooled, query.squeeze(1)], dim=1))).squeeze(-1)


class DIEN(nn.Module):
    """GRU over the history, attention, then an attention-gated GRU step by step."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, WIDTH)
        self.gru, self.cell = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.GRUCell(WIDTH, WIDTH)
        self.out = nn.Linear(2 * WIDTH, 1)

    def forward(self, history, target):
        states, _ = self.gru(self.table(history))
        query = self.table(target)
        attention = torch.softmax((states * query.unsqueeze(1)).sum(-1), dim=1)
        h = torch.zeros(history.shape[0], WIDTH)
        for t in range(STEPS):
            new = self.cell(states[:, t], h)
            a = attention[:, t : t + 1]
            h = (1 - a) * h + a * new
        return self.out(torch.cat([h, query], dim=1)).sigmoid()


class Recurrent(nn.Module):
    def __init__(self, kind, **kwargs):
        super().__init__()
        self.table, self.first = nn.Embedding(VOCAB, WIDTH), kwargs.get("batch_first", False)
        self.rnn = kind(WIDTH, WIDTH, **kwargs)
        self.out = nn.Linear(WIDTH * (2 if kwargs.get("bidirectional") else 1), 1)

    def forward(self, history):
        e = self.table(history)
        out, _ = self.rnn(e if self.first else e.transpose(0, 1))
        return self.out(out[:, -1] if self.first else out[-1])


class AutoInt(nn.Module):
    def __init__(self, heads=2):
        super().__init__()
        self.fields, self.heads = Fields(), heads
        self.q, self.k, self.v, self.res = (nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.2) for _ in range(4))
        self.out = nn.Linear(FIELDS * WIDTH, 1)

    def forward(self, ids):
        x = self.fields(ids)
        q, k, v = (torch.tensordot(x, w, dims=([-1], [0])) for w in (self.q, self.k, self.v))
        q, k, v = (torch.stack(torch.split(t, WIDTH // self.heads, dim=2)) for t in (q, k, v))  # (heads, rows, FIELDS, d)
        weights = F.softmax(torch.einsum("bnik,bnjk->bnij", q, k), dim=-1)
        y = torch.cat(torch.split(torch.matmul(weights, v), 1), dim=-1).squeeze(0)
        return self.out(F.relu(y + x @ self.res).flatten(1)).sigmoid()


class FiBiNET(nn.Module):
    def __init__(self):
        super().__init__()
        self.fields, pairs = Fields(), FIELDS * (FIELDS - 1) // 2
        self.squeeze = nn.Sequential(nn.Linear(FIELDS, 2), nn.ReLU(), nn.Linear(2, FIELDS), nn.ReLU())
        self.bilinear = nn.Linear(WIDTH, WIDTH, bias=False)
        self.deep = mlp(2 * pairs * WIDTH, 16, 1, act=nn.SELU)

    def forward(self, ids):
        e = self.fields(ids)
        s = e * self.squeeze(e.mean(dim=2)).unsqueeze(2)
        both = []
        for x in (e, s):
            parts = torch.chunk(x, FIELDS, dim=1)
            both.append(torch.cat([self.bilinear(parts[i]) * parts[j] for i in range(FIELDS) for j in range(i + 1, FIELDS)], dim=1))
        return self.deep(torch.cat(both, dim=1).flatten(1)).sigmoid()


class MMoE(nn.Module):
    """Experts as one einsum over a (experts, in, out) weight; two tasks."""

    def __init__(self, out="dict"):
        super().__init__()
        self.fields, width, self.how = Fields(), FIELDS * WIDTH, out
        self.experts, self.bias = nn.Parameter(torch.randn(3, width, 16) * 0.1), nn.Parameter(torch.zeros(3, 16))
        self.gates, self.towers = nn.ModuleList(nn.Linear(width, 3) for _ in range(2)), nn.ModuleList(mlp(16, 8, 1) for _ in range(2))

    def forward(self, ids):
        x = self.fields(ids).flatten(1)
        experts = F.relu(torch.einsum("bi,eio->beo", x, self.experts) + self.bias)
        tasks = []
        for gate, tower in zip(self.gates, self.towers):
            mixed = torch.einsum("be,beo->bo", gate(x).softmax(-1), experts)
            tasks.append(torch.sigmoid(tower(mixed)))
        if self.how == "dict":
            return {"click": tasks[0], "buy": tasks[1].squeeze(1)}
        if self.how == "dataclass":
            return Tasks(*tasks)
        return tuple(tasks) if self.how == "tuple" else torch.cat(tasks, dim=1)


@dataclasses.dataclass
class Tasks:
    click: torch.Tensor
    buy: torch.Tensor
    loss: torch.Tensor | None = None


class TwoTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(VOCAB, WIDTH), nn.Embedding(VOCAB, WIDTH)
        self.left, self.right = mlp(WIDTH + DENSE, 16, WIDTH), mlp(WIDTH, 16, WIDTH)

    def forward(self, user, dense, item):
        a, b = self.left(torch.cat([self.user(user), dense], 1)), self.right(self.item(item))
        return F.cosine_similarity(F.normalize(a, dim=-1), b, dim=1) / 0.07


class PNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.fields = Fields()
        self.kernel = nn.Parameter(torch.randn(WIDTH, FIELDS * (FIELDS - 1) // 2, WIDTH) * 0.1)
        self.deep = mlp(FIELDS * WIDTH + FIELDS * (FIELDS - 1), 16, 1)

    def forward(self, ids):
        e = self.fields(ids)
        row, col = zip(*[(i, j) for i in range(FIELDS) for j in range(i + 1, FIELDS)])
        p, q = e[:, list(row)], e[:, torch.tensor(col)]
        inner = (p * q).sum(-1)
        kp = torch.sum(p.unsqueeze(1) * self.kernel, dim=-1).permute(0, 2, 1)
        outer = (kp * q).sum(-1)
        return self.deep(torch.cat([e.flatten(1), inner, outer], dim=1)).sigmoid()


class SingleMatrix(nn.Module):
    """One float matrix: columns 0-2 are ids, the rest is dense (as deepctr-torch feeds its models)."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10 * (i + 1), WIDTH) for i in range(3))
        self.deep = mlp(3 * WIDTH + 2, 16, 1)

    def forward(self, X):
        e = [table(X[:, i : i + 1].long()) for i, table in enumerate(self.tables)]
        return torch.sigmoid(self.deep(torch.cat([torch.cat(e, dim=-1).flatten(1), X[:, 3:]], dim=-1)))


class Bags(nn.Module):
    """EmbeddingBag in every form: flat ids with offsets, 2-D ids, weights, padding, merged fields."""

    def __init__(self, mode="sum", form="2d", padding=None, weighted=False, last=False):
        super().__init__()
        self.bag = nn.EmbeddingBag(VOCAB, WIDTH, mode=mode, padding_idx=padding, include_last_offset=last)
        self.form, self.weighted, self.last = form, weighted, last
        self.out = nn.Linear(WIDTH * (3 if form == "fields" else 1), 1)

    def forward(self, history, weights=None):
        rows = history.shape[0]
        given = weights if self.weighted else None
        if self.form == "2d":
            e = self.bag(history, per_sample_weights=given)
        else:
            length = STEPS // 3 if self.form == "fields" else STEPS
            bags = rows * STEPS // length
            offsets = torch.arange(bags + self.last) * length
            e = self.bag(history.reshape(-1), offsets, per_sample_weights=None if given is None else given.reshape(-1))
        return self.out(e.reshape(rows, -1))


class Transformer(nn.Module):
    """BST: positions, an encoder layer with a padding mask, the target as last step."""

    def __init__(self, batch_first=True, masked=True):
        super().__init__()
        self.table, self.place = nn.Embedding(VOCAB, WIDTH, padding_idx=0), nn.Embedding(STEPS + 1, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=batch_first, activation="gelu", norm_first=False)
        self.encoder, self.first, self.masked = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), batch_first, masked
        self.out = nn.Linear((STEPS + 1) * WIDTH, 1)

    def forward(self, history, target):
        steps = torch.cat([history, target.unsqueeze(1)], dim=1)
        x = self.table(steps) * math.sqrt(WIDTH) + self.place(torch.arange(STEPS + 1))
        mask = (steps == 0) if self.masked else None
        y = self.encoder(x, src_key_padding_mask=mask) if self.first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.out(y.flatten(1)).sigmoid()


class Attend(nn.Module):
    """scaled_dot_product_attention with a bool mask, in which some queries see nothing; causal; and with its own scale."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, WIDTH)

    def forward(self, history):
        x = self.table(history).view(-1, STEPS, 2, WIDTH // 2).transpose(1, 2)
        mask = (history > 25)[:, None, None, :]
        a = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        b = F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3)
        return (a + b).transpose(1, 2).reshape(history.shape[0], -1).sum(1)


class Lambda(nn.Module):
    """A forward in one line, over the embedded history e, the dense features x and the ids."""

    def __init__(self, fn):
        super().__init__()
        self.table, self.fn = nn.Embedding(VOCAB, WIDTH), fn
        self.conv, self.conv2 = nn.Conv1d(WIDTH, 6, 3, padding=1), nn.Conv2d(1, 4, (3, 1), padding=(1, 0))
        self.lin, self.prelu, self.gn = nn.Linear(WIDTH, WIDTH), nn.PReLU(STEPS), nn.GroupNorm(2, STEPS)
        self.depth, self.norm = nn.Conv1d(WIDTH, WIDTH, 2, groups=WIDTH), nn.LayerNorm([STEPS, WIDTH])
        self.register_buffer("order", torch.tensor([3, 1, 4]))

    def forward(self, dense, history):
        return self.fn(self, self.table(history), dense, history)


def last_state(m, e, x, h):
    length = (h > 20).sum(1)
    return e[torch.arange(h.shape[0]), length - 1]


def write_columns(m, e, x, h):
    out = torch.zeros(h.shape[0], 6)
    out[:, 1] = x[:, 0]
    out[:, 2:4] += x[:, 1:3]
    out[:, torch.tensor([0, 5])] = x[:, 2:4]
    return out.masked_fill_(out > 1, -1.0)


def pair_matrix(m, e, x, h):
    out = torch.zeros(h.shape[0], 3, 3)
    i, j = torch.triu_indices(3, 3)
    out[:, i, j] = h[:, :6].float()
    return out + out.transpose(1, 2)


def scatter_votes(m, e, x, h):
    return torch.zeros(h.shape[0], 10).scatter_add(1, h % 10, e.sum(2))


FORWARDS = {
    "conv1d": lambda m, e, x, h: F.max_pool1d(m.conv(e.transpose(1, 2)), 2),
    "conv2d": lambda m, e, x, h: F.max_pool2d(torch.tanh(m.conv2(e.unsqueeze(1))), (2, 1)).flatten(1),
    "depthwise conv": lambda m, e, x, h: F.avg_pool1d(m.depth(e.transpose(1, 2)), 2),
    "topk": lambda m, e, x, h: torch.topk(e, 2, dim=1)[0].sum(2),
    "sort and gather": lambda m, e, x, h: torch.gather(e, 1, torch.argsort(e.sum(2), dim=1)[:, :3, None].expand(-1, -1, WIDTH)),
    "kmax of a mean": lambda m, e, x, h: e.sort(dim=1, descending=True).values[:, :2].mean((1, 2)),
    "cumsum": lambda m, e, x, h: e.cumsum(1) + (1 + 0.1 * e).cumprod(dim=1),
    "last state": last_state,
    "write columns": write_columns,
    "pair matrix": pair_matrix,
    "scatter_add": scatter_votes,
    "one_hot": lambda m, e, x, h: F.one_hot(h % 7, 7).float().sum(1),
    "index by a buffer": lambda m, e, x, h: e[:, m.order, 2:5],
    "triu by a bool mask": lambda m, e, x, h: torch.bmm(e, e.transpose(1, 2))[:, torch.ones(STEPS, STEPS).triu(1).bool()],
    "roll, flip, pad": lambda m, e, x, h: F.pad(e.roll(1, 1).flip(2), (1, 2, 0, 1), value=0.5),
    "pointwise zoo": lambda m, e, x, h: (
        F.silu(x) + F.elu(x) + F.leaky_relu(x, 0.2) + F.hardswish(x) + F.softplus(x) + F.gelu(x, approximate="tanh") + F.mish(x)
        + torch.log1p(x.abs()) + x.clamp(-1, 1) ** 3 + torch.atan2(x, x.abs() + 1) + F.relu6(x) + F.logsigmoid(x) + torch.rsqrt(x * x + 1)
    ),
    "rounding": lambda m, e, x, h: torch.floor(x) + torch.ceil(x) + torch.trunc(x) + torch.round(x) + x // 1 + torch.fmod(x, 2) + x % 3,
    "integers": lambda m, e, x, h: (h // 3 + h % 4 - (h > 7).long()).float().sum(1) / STEPS,
    "logic": lambda m, e, x, h: ((h > 5) & ~(h == 7) | (h.eq(0))).float().mean(1) + torch.any(h > 40, dim=1) + (h > 1).all(1),
    "norms": lambda m, e, x, h: e.norm(dim=2) + e.abs().amax(2) + F.normalize(e, dim=2).sum(2) + e.std(2) + e.var(2, unbiased=False),
    "layer and group norm": lambda m, e, x, h: m.norm(e) + m.gn(e) + m.prelu(e),
    "log_softmax": lambda m, e, x, h: F.log_softmax(e, -1) + torch.logsumexp(e, 1, keepdim=True),
    "max with indices": lambda m, e, x, h: e.max(dim=1)[0] + e.argmax(dim=1) + e.min(1).values,
    "nan": lambda m, e, x, h: torch.nan_to_num(torch.log(x), nan=0.5, neginf=-2.0) + torch.isnan(torch.sqrt(x)).float(),
    "repeat": lambda m, e, x, h: (x.repeat(1, 2).unsqueeze(1).repeat(1, 3, 1) * torch.arange(3).view(1, 3, 1)).tile(1, 1, 2),
    "batches side by side": lambda m, e, x, h: torch.cat([m.lin(p) for p in torch.cat([e[:, 0], e[:, 1]], dim=0).chunk(2)], dim=1),
    "stacked towers": lambda m, e, x, h: m.lin(torch.cat([e[:, 0], e[:, 1]], 0)).view(2, -1, WIDTH).transpose(0, 1),
    "repeat_interleave": lambda m, e, x, h: m.lin(x.repeat_interleave(3, 0).repeat(1, 2)).view(-1, 3, WIDTH).sum(1),
    "unfold": lambda m, e, x, h: x.unfold(1, 2, 1).sum(-1) * torch.eye(3)[1],
    "glu": lambda m, e, x, h: F.glu(e, dim=-1) + e.view(-1, STEPS, 2, WIDTH // 2).unbind(2)[1],
    "with a block": lambda m, e, x, h: no_grad_part(e) + m.lin(e).sum(2),
    "python numbers": lambda m, e, x, h: (h * 2 + 1) / 3 + 10007.0 * h - h * 10007,
    "searchsorted": lambda m, e, x, h: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])).float(),
    "baddbmm": lambda m, e, x, h: torch.baddbmm(e.sum(2, keepdim=True), e, e.transpose(1, 2)),
    "per-field weights": lambda m, e, x, h: torch.einsum("bfd,fdo->bfo", e[:, :2], m.lin.weight.view(2, 4, WIDTH).transpose(1, 2)),
    "weights as batch": lambda m, e, x, h: torch.matmul(e.transpose(0, 1), m.lin.weight.expand(STEPS, -1, -1)).transpose(0, 1),
    "weights from the row": lambda m, e, x, h: torch.bmm(x.unsqueeze(1), e.view(-1, 4, 12)).squeeze(1),
    "outer product": lambda m, e, x, h: torch.einsum("bi,bj->bij", x, e[:, 0]).flatten(1),
    "where a row is empty": lambda m, e, x, h: torch.where((h > 48).any(1, keepdim=True), torch.zeros_like(x), x),
    "new tensors": lambda m, e, x, h: x + x.new_zeros(x.shape) + torch.ones(x.shape[0], 1) * torch.full((DENSE,), 2.0) + torch.ones_like(x),
    "double inside": lambda m, e, x, h: (x.double() * 0.1).sum(1).float(),
}  # fmt: skip


def no_grad_part(e):
    with torch.no_grad():
        return (e * 2).sum(2)


class DictBatch(DCNv2):
    def forward(self, batch):
        return super().forward(batch["dense"], batch["ids"])


class TupleBatch(DCNv2):
    def forward(self, batch: tuple[torch.Tensor, torch.Tensor]):
        return super().forward(*batch)


class Keywords(DCNv2):
    def forward(self, *, ids, dense, temperature=2.0):
        return super().forward(dense, ids) / temperature


class Double(DCNv2):
    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, dense, ids):
        return super().forward(dense.double(), ids)


user, item, weights = Input("user", "int64"), Input("item", "int64"), Input("weights", "float32", (STEPS,))
MODELS = {
    "DLRM": (DLRM, [dense, ids]),
    "DLRM, stack(dim=0)": (lambda: DLRM(True), [dense, ids]),
    "DCN-v2": (DCNv2, [dense, ids]),
    "DCN-v2 of low rank": (lambda: DCNv2(4), [dense, ids]),
    "DeepFM, view(-1, d)": (DeepFM, [ids]),
    "DIN with Dice and PReLU": (DIN, [history, target]),
    "DIEN-like": (DIEN, [history, target]),
    "GRU": (lambda: Recurrent(nn.GRU), [history]),
    "GRU of two layers both ways": (lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True, batch_first=True), [history]),
    "LSTM": (lambda: Recurrent(nn.LSTM, batch_first=True), [history]),
    "AutoInt": (AutoInt, [ids]),
    "FiBiNET": (FiBiNET, [ids]),
    "MMoE": (MMoE, [ids]),
    "MMoE, a tuple": (lambda: MMoE("tuple"), [ids]),
    "MMoE, a dataclass": (lambda: MMoE("dataclass"), [ids]),
    "two-tower": (TwoTower, [user, dense, item]),
    "PNN": (PNN, [ids]),
    "single matrix": (SingleMatrix, [Input("X", "float32", (5,))]),
    "bag sum": (Bags, [history]),
    "bag mean, padding": (lambda: Bags("mean", padding=3), [history]),
    "bag max, padding": (lambda: Bags("max", padding=0), [history]),
    "bag sum, weights, offsets": (lambda: Bags(form="flat", weighted=True, padding=1), [history, weights]),
    "bag mean, last offset": (lambda: Bags("mean", "flat", last=True), [history]),
    "bag of fields": (lambda: Bags("mean", "fields"), [history]),
    "transformer": (Transformer, [history, target]),
    "transformer, steps first": (lambda: Transformer(False, False), [history, target]),
    "attention": (Attend, [history]),
    "dict of inputs": (DictBatch, [dense, ids]),
    "tuple of inputs": (TupleBatch, [dense, ids]),
    "keywords only": (Keywords, [dense, ids]),
    "float64": (Double, [dense, ids]),
    **{name: (lambda fn=fn: Lambda(fn), [dense, history]) for name, fn in FORWARDS.items()},
}


def build(name):
    """The model, with weights that make its output move."""
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model = make()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d,)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model, inputs
