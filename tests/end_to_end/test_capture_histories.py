"""Models of histories that leave rows out by a mask, or pack their sequences: captured at all lengths, the empty one included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import burnish
from burnish.capture.parity import difference
from burnish.errors import CaptureError
from burnish.graph.interpret import interpret
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.passes.recurrence import tidy_recurrences

STEPS, WIDTH, VOCAB = 7, 6, 40
INPUTS = [
    Input("item", "int64", (), cardinality=VOCAB),
    Input("history", "int64", (STEPS,), cardinality=VOCAB),
    Input("length", "int64", (), cardinality=STEPS + 1),
]


class Interests(nn.Module):
    """A GRU over the rows that have a history, padded again; its last state beside the item."""

    def __init__(self, layers=1, kind=nn.GRU):
        super().__init__()
        self.table, self.gru = nn.Embedding(VOCAB, WIDTH), kind(WIDTH, WIDTH, layers, batch_first=True)
        self.out = nn.Linear(3 * WIDTH, 1)

    def forward(self, item, history, length):
        query, keys = self.table(item), self.table(history)
        known = length > 0
        last, mean = torch.zeros_like(query), torch.zeros_like(query)
        if known.any():
            packed = pack_padded_sequence(keys[known], length[known].cpu(), batch_first=True, enforce_sorted=False)
            states, hidden = self.gru(packed)
            padded, _ = pad_packed_sequence(states, batch_first=True, total_length=STEPS)
            last[known] = hidden[-1]
            mean[known] = padded.sum(1) / length[known].unsqueeze(1)
        return torch.sigmoid(self.out(torch.cat([query, last, mean], 1)))


class Evolving(nn.Module):
    """DIEN's second half: steps of the packed sequence by hand, the update gate scaled by attention, the state at the row's own end."""

    def __init__(self):
        super().__init__()
        self.table, self.first = nn.Embedding(VOCAB, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.own, self.back = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(2 * WIDTH, 1)

    def forward(self, item, history, length):
        known = length > 0
        result = torch.zeros(len(item), WIDTH)
        here = length[known]
        if here.shape[0] == 0:
            return self.out(torch.cat([self.table(item), result], 1))
        query = torch.masked_select(self.table(item), known.view(-1, 1)).view(-1, WIDTH)
        keys = torch.masked_select(self.table(history), known.view(-1, 1, 1)).view(-1, STEPS, WIDTH)
        states, _ = self.first(pack_padded_sequence(keys, here.cpu(), batch_first=True, enforce_sorted=False))
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=STEPS)
        inside = torch.arange(STEPS).repeat(here.shape[0], 1) < here.view(-1, 1)
        scores = (states @ query.unsqueeze(-1)).squeeze(-1).masked_fill(~inside, -1e9).softmax(1)
        data, sizes, order, back = pack_padded_sequence(states, here.cpu(), batch_first=True, enforce_sorted=False)
        weights = pack_padded_sequence(scores, here.cpu(), batch_first=True, enforce_sorted=False).data
        h, begin = torch.zeros(int(sizes[0]), WIDTH), 0
        put = torch.zeros(len(data), WIDTH)
        for rows in sizes:
            own, old = self.own(data[begin : begin + rows]).chunk(3, 1), self.back(h[:rows]).chunk(3, 1)
            new = torch.tanh(own[2] + torch.sigmoid(own[0] + old[0]) * old[2])
            gate = weights[begin : begin + rows].view(-1, 1) * torch.sigmoid(own[1] + old[1])
            h = (1 - gate) * h[:rows] + gate * new
            put[begin : begin + rows] = h
            begin += rows
        packed = nn.utils.rnn.PackedSequence(put, sizes, order, back)
        padded, _ = pad_packed_sequence(packed, batch_first=True, total_length=STEPS)
        result[known] = padded[torch.arange(STEPS).repeat(here.shape[0], 1) == here.view(-1, 1) - 1]
        return self.out(torch.cat([self.table(item), result], 1))


def table(lengths: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    n = len(lengths)
    return {"item": random.integers(0, VOCAB, n), "history": random.integers(0, VOCAB, (n, STEPS)), "length": np.array(lengths)}


@pytest.mark.parametrize("make", [Interests, lambda: Interests(layers=2), Evolving], ids=["GRU", "two layers", "AUGRU by hand"])
@pytest.mark.parametrize("lengths", [[1], [STEPS], [0, 3], [0, 0, 5, 1], [*range(STEPS + 1)] * 3, [0, 0, 0]], ids=str)
def test_histories_of_every_length_agree_with_the_model(make, lengths):
    torch.manual_seed(1)
    model = make().eval()
    graph = burnish.capture(model, INPUTS)
    rows = table(lengths)
    with torch.no_grad():
        want = model(*(torch.from_numpy(rows[spec.name]) for spec in INPUTS)).numpy()
    assert difference(want, interpret(graph, rows)["score"]) < 1e-5
    assert difference(want, interpret(tidy_recurrences(graph), rows)["score"]) < 1e-5


def test_a_cell_by_hand_ends_as_one_gru_node():
    graph = tidy_recurrences(burnish.capture(Evolving(), INPUTS))
    assert [node["scores"] for node in graph.order if node.op is Op.GRU] == [None, "scale"]


def test_the_model_and_torch_are_left_as_they_were():
    before = nn.GRU.forward, pack_padded_sequence, pad_packed_sequence
    model = Interests().eval()
    burnish.capture(model, INPUTS)
    assert (nn.GRU.forward, nn.utils.rnn.pack_padded_sequence, nn.utils.rnn.pad_packed_sequence) == before
    assert globals()["pack_padded_sequence"] is before[1]


def test_a_packed_lstm_is_refused_by_name():
    with pytest.raises(CaptureError, match=r"LSTM over packed sequences: burnish follows a GRU's only. Run it over the padded sequence"):
        burnish.capture(Interests(kind=nn.LSTM), INPUTS)


def test_rows_that_stay_left_out_are_seen():
    class Shorter(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(VOCAB, WIDTH)

        def forward(self, item, history, length):
            return self.table(item)[length > 0].sum(1)

    with pytest.raises(CaptureError, match=r"output 'score'"):
        burnish.capture(Shorter(), INPUTS)
