"""Training through the twin: in the native integers to the bit, from what PTQ chose, resumed after a kill as if nothing had happened."""

import numpy as np
import pytest

from burnish import testing
from burnish.errors import RecipeError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.graph.verify import verify
from burnish.inputs import Input
from burnish.passes.factor import factor_request
from burnish.passes.tidy import tidy
from burnish.quantize import affine, ptq
from burnish.recipe import Finetune, Int4Tables, Int8, Prune, Qat, Recipe, Tidy, apply
from burnish.train import Progress, Training

torch = pytest.importorskip("torch", reason="torch is not installed")
from burnish.graph.to_torch import to_torch  # noqa: E402
from burnish.train import loop, qat  # noqa: E402
from burnish.train.finetune import finetune  # noqa: E402

SMALL = {
    "dcn_v2": {"dense": 5, "ids": 6, "width": 8, "cross": 2, "deep": (24, 16), "cardinality": 60},
    "dlrm": {"dense": 5, "ids": 4, "width": 8, "bottom": (24,), "top": (24, 16), "cardinality": 60},
    "mmoe": {"dense": 5, "ids": 4, "experts": 2, "expert": (24, 16), "cardinality": 60},
    "din": {"history": 5, "width": 8, "cardinality": 60, "hidden": 12, "deep": (24,)},
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(name: str = "dcn_v2") -> Graph:
    return tidy(testing.MODELS[name](**SMALL[name]))


def logit(graph: Graph) -> Graph:
    """The graph without its sigmoid, whose last bit is each library's own."""
    return Graph(graph.inputs, {name: node.inputs[0] for name, node in graph.outputs})


def given(graph: Graph, rows: int = 2000, seed: int = 1, **more) -> Training:
    return Training(testing.rows(graph, rows, seed), **more)


def run(module, table):
    with torch.no_grad():
        got = module(**{name: torch.from_numpy(array) for name, array in table.items()})
    return {name: y.numpy() for name, y in (got if isinstance(got, dict) else {"": got}).items()}


def lost(graph: Graph, changed: Graph, table) -> float:
    """Mean squared difference of the scores, over their variance."""
    return sum(float(np.mean((y - interpret(changed, table)[name]) ** 2) / np.var(y)) for name, y in interpret(graph, table).items())


def twin(graph: Graph, bits: int, **options) -> tuple[Graph, qat.Twin]:
    choices = ptq.choose(graph, testing.rows(graph, 400, 0), weight_bits=bits, **options)
    start = ptq.quantized(graph, choices)
    return start, qat.Twin(start, choices, ptq.largest(bits))


def disturb(module) -> None:
    """Move every weight and step that learns."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * (0.1 if name.endswith("step") else 0.05))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("bits", [4, 8])
def test_training_starts_from_what_ptq_chose_to_the_bit(name, bits):
    graph = small(name)
    start, made = twin(graph, bits)
    table = testing.rows(graph, 200, 3)
    want = run(to_torch(start), table)
    for key, y in run(made.module, table).items():
        assert np.array_equal(y, want[key])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("bits", [3, 8])
def test_what_training_computes_the_graph_computes(name, bits):
    graph = small(name)
    _, made = twin(graph, bits)
    disturb(made.module)
    after, table = verify(made.graph()), testing.rows(graph, 200, 3)
    got, want = run(made.module, table), run(to_torch(after), table)
    assert all(np.array_equal(got[key], want[key]) for key in want)
    assert all(np.abs(node.inputs[1]["weight"].array).max() <= ptq.largest(bits) for node in after.order if node.op is Op.QLINEAR)


def test_integers_and_scores_are_the_interpreters_and_those_of_the_factored_graph():
    """All linears quantized and no sigmoid: nothing is left that two libraries may round differently."""
    graph = logit(small())
    _, made = twin(graph, 4, narrowest=1)
    disturb(made.module)
    after, table = made.graph(), testing.rows(graph, 300, 3)
    got = run(made.module, table)[""]
    for same in (after, factor_request(after)):
        assert np.array_equal(interpret(same, table)["score"], got)
    for node, module in made.quantizes.items():  # each value that is quantized, alone
        x = np.random.default_rng(0).normal(0, 3, (50, node.shape[-1])).astype(np.float32)
        x[0, 0] = np.nan
        with torch.no_grad():
            q = module(torch.from_numpy(x)).numpy() + node["zero_point"]
        assert np.array_equal(q, affine.quantize(x, module.multiplier().detach().numpy(), node["zero_point"]))


@pytest.mark.parametrize("k", [30, 700, 2000])
def test_long_sums_are_exact(k):
    """Whole numbers above 2^24 do not fit float32: long rows of largest values are added up in pieces."""
    random = np.random.default_rng(0)
    q = random.integers(-127, 128, (8, k)).astype(np.int8)
    q[0], x = 127, random.integers(0, 256, (20, k))
    x[0] = 255
    scale, bias = random.random(8).astype(np.float32), random.random(8).astype(np.float32)
    module = qat.Linear(qat.Quantize(np.ones((), np.float32), 0), q * scale[:, None], q, scale, bias, 127)
    with torch.no_grad():
        got = module(torch.from_numpy(x.astype(np.float32))).numpy()
    assert np.array_equal(got, affine.rescale(affine.dot(x.astype(np.uint8), q, 0), scale, bias))


def test_gradients_are_those_of_learned_steps():
    """LSQ: the step's is rint(v) - v within the range and its end outside; the value's is 1 within and 0 outside."""
    module = qat.Quantize(np.array(4.0, np.float32), 10)
    x = torch.tensor([0.3, -1.1, 7.77, -9.0, 80.0], requires_grad=True)
    module.double()
    read = module(x.double()) / module.multiplier()
    v, inside = x.detach().double() * 4, torch.tensor([True, True, True, False, False])
    of_step = torch.where(inside, torch.round(v) - v, torch.where(v < 0, -10.0, 245.0)) / 4  # per unit of the step, times its size 1/4
    for i in range(5):
        (found,) = torch.autograd.grad(read[i], module.step, retain_graph=True)
        assert float(found) == pytest.approx(-float(of_step[i]), abs=1e-6)  # the gain is one over the step
    read.sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 0, 0]


def test_what_int3_weights_lose_is_recovered_in_part_even_on_random_weights():
    graph = small()
    training, fresh = given(graph, 6000), testing.rows(graph, 1000, 9)
    calibration = testing.rows(graph, 1000, 0)
    before = lost(graph, apply(graph, Recipe((Int8(weight_bits=3, loss=1.0),)), calibration), fresh)
    after = lost(graph, apply(graph, Recipe((Qat(weight_bits=3, epochs=6, batch=128, rate=4e-3),)), calibration, training), fresh)
    assert after < 0.6 * before


def damaged(graph: Graph) -> Graph:
    random = np.random.default_rng(5)

    def change(node: Node, operands: tuple[Node, ...]) -> Node:
        if node.op is Op.LINEAR and node.shape[-1] > 1:
            w = operands[1]["weight"].array
            w = w + random.normal(0, 0.5 * w.std(), w.shape).astype(np.float32)
            return node.with_inputs((operands[0], weight("damaged", w), *operands[2:]))
        return node if operands == node.inputs else node.with_inputs(operands)

    return graph.map(change)


def test_a_damaged_graph_is_tuned_back_towards_the_original():
    graph = small()
    broken, fresh = damaged(graph), testing.rows(graph, 1000, 9)
    tuned = verify(finetune(broken, given(graph, 6000), graph, epochs=8, rate=2e-3, batch=128))
    assert lost(graph, tuned, fresh) < lost(graph, broken, fresh) / 4
    tables = {node: node["weight"].array for node in graph.order if node.op is Op.WEIGHT and node.shape[:1] == (60,)}
    kept = [node["weight"].array for node in tuned.order if node.op is Op.WEIGHT and node.shape[:1] == (60,)]
    assert len(kept) == len(tables) and all(np.array_equal(a, b) for a, b in zip(tables.values(), kept))
    with_tables = finetune(broken, given(graph), graph, epochs=1, tables=True)
    assert not all(
        np.array_equal(a, b["weight"].array)
        for a, b in zip(tables.values(), (n for n in with_tables.order if n.op is Op.WEIGHT and n.shape[:1] == (60,)))
    )


def test_labels_teach_what_the_original_does_not_know():
    graph = small()
    training, fresh = given(graph, 6000), testing.rows(graph, 2000, 9)

    def truth(table):
        return (table["dense"][:, 0] + np.random.default_rng(0).normal(size=len(table["dense"])) > 0).astype(np.float32)

    def log_loss(g):
        p = np.clip(interpret(g, fresh)["score"].ravel(), 1e-6, 1 - 1e-6)
        return float(-np.mean(np.where(truth(fresh) == 1, np.log(p), np.log(1 - p))))

    labelled = Training(training.table, truth(training.table))
    tuned = finetune(graph, labelled, graph, target="labels", epochs=3, rate=2e-3, batch=128)
    assert log_loss(tuned) < 0.62 < log_loss(graph)


def test_several_outputs_and_scores_that_are_no_probabilities_are_matched_too():
    for graph in (small("mmoe"), logit(small())):
        broken, fresh = damaged(graph), testing.rows(graph, 500, 9)
        tuned = finetune(broken, given(graph, 4000), graph, epochs=5, rate=2e-3, batch=128)
        assert lost(graph, tuned, fresh) < lost(graph, broken, fresh) / 2


def weights_of(graph: Graph) -> list[bytes]:
    return [node["weight"].array.tobytes() for node in graph.order if node.op is Op.WEIGHT]


def test_a_killed_training_goes_on_where_it_was_and_ends_with_the_same_weights(tmp_path):
    graph = small()
    calibration, step = testing.rows(graph, 400, 0), Recipe((Qat(weight_bits=4, epochs=2, batch=64),))

    class Killed(BaseException):
        pass

    seen: list[Progress] = []

    def kill_at(look: int | None):
        def progress(found: Progress) -> None:
            seen.append(found)
            if len(seen) == look:
                raise Killed

        return progress

    def train(look: int | None = None, seed: int = 1) -> Graph:
        seen.clear()
        return apply(graph, step, calibration, given(graph, seed=seed, checkpoints=tmp_path / "kept", progress=kill_at(look)))

    whole = apply(graph, step, calibration, given(graph))
    with pytest.raises(Killed):
        train(4)
    (tmp_path / "kept" / "Qat-half.part").write_bytes(b"killed while it was written")
    resumed = train()
    assert seen[0].step > 0 and weights_of(resumed) == weights_of(whole)
    again = train()  # finished: nothing is trained again
    assert seen == [] and weights_of(again) == weights_of(whole)
    train(seed=2)  # other rows: not that training
    assert seen[0].step == 0


def test_training_never_leaves_a_model_worse_on_held_out_rows():
    graph, seen = small(), []
    calibration = testing.rows(graph, 400, 0)
    training = given(graph, progress=seen.append)
    after = apply(graph, Recipe((Qat(rate=1.0, batch=64),)), calibration, training)
    assert weights_of(after) == weights_of(apply(graph, Recipe((Int8(loss=1.0),)), calibration))
    assert seen[-1].best == seen[0].start and seen[-1].step < seen[-1].steps  # and it stopped early


def test_steps_compose_and_learn_from_the_graph_the_recipe_began_with():
    graph = small()
    calibration, fresh = testing.rows(graph, 1000, 0), testing.rows(graph, 1000, 9)
    pruned = (Tidy(), Int4Tables(), Prune(keep=0.5, narrowest=4))
    tuned = (*pruned, Finetune(epochs=5, rate=2e-3, batch=128), Qat(epochs=1))
    before = apply(graph, Recipe((*pruned, Int8(loss=1.0))), calibration)
    after = apply(graph, Recipe(tuned), calibration, given(graph, 4000))
    assert lost(graph, after, fresh) < lost(graph, before, fresh)
    assert [n.shape for n in after.order if n.op is Op.QLINEAR] == [n.shape for n in before.order if n.op is Op.QLINEAR]
    assert {n.dtype for n in after.order if n.op is Op.WEIGHT and n.shape[:1] == (60,) and n.shape[1] > 1} == {"int4"}


def one_output(n: int = 300, labels=None, output: str | None = None, nan: bool = False):
    x = Input("x", "float32", (4,))
    w, b = weight("w", np.ones((8, 4), np.float32)), weight("b", np.arange(8, dtype=np.float32))
    graph = Graph([x], {"y": Node(Op.LINEAR, (input_node(x), w, b))})
    rows = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    rows[7, 1] = np.nan if nan else 0
    return graph, {"x": rows[20:60]}, Training({"x": rows}, labels, output)


@pytest.mark.parametrize(
    ("step", "made", "sentence"),
    [
        (Finetune(), {"n": 100}, r"100 train rows are too few for step Finetune; 256 are the least\. Give those the model was trained on"),
        (
            Qat(target="labels"),
            {},
            r'step Qat has target "labels" and there are none\. Give train labels, or leave it at target "original"',
        ),
        (
            Finetune(target="labels"),
            {"labels": np.zeros(300), "output": "z"},
            r"step Finetune has target \"labels\"; the model has the outputs y, and there is no 'z'",
        ),
        (Finetune(target="labels"), {"labels": np.zeros(300)}, r"300 labels for an output 'y' of \(300, 8\) values\. Give one a row"),
        (Finetune(), {"nan": True}, r"step Finetune cannot train: the original scores some train rows nan\. Check the train rows for NaN"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_sentence(step, made, sentence):
    graph, calibration, training = one_output(**made)
    with pytest.raises(RecipeError, match=sentence):
        apply(graph, Recipe((step,)), calibration, training)


def test_a_training_that_diverges_says_so():
    graph = small()
    broken = damaged(graph)
    with pytest.raises(RecipeError, match=r"step Finetune diverged: the loss is (nan|inf) after \d+ steps\. Give it a lower rate"):
        finetune(broken, given(graph), graph, rate=1e30)


def test_labels_of_one_class_teach_nothing():
    graph = small()
    training = given(graph)
    with pytest.raises(RecipeError, match=r'step Finetune has target "labels" and needs both 0 and 1; met 1\.0'):
        apply(graph, Recipe((Finetune(target="labels"),)), training=Training(training.table, np.ones(2000, np.float32)))


def test_what_is_quantized_already_is_not_trained():
    graph, calibration, training = one_output()
    with pytest.raises(RecipeError, match=r"step Qat quantizes the linears itself, and a step before it has done so\. Leave Int8 out"):
        apply(graph, Recipe((Int8(loss=1.0), Qat())), calibration, training)


def looks(monkeypatch, losses: list[float], drop: float = 1.0) -> list[Progress]:
    """What a training of 20 looks tells when the held-out rows say this."""
    said, seen = iter(losses), []
    monkeypatch.setattr(loop._Run, "_judge", lambda self: (next(said), drop))
    graph = small()
    finetune(graph, given(graph, 500, progress=seen.append), graph, epochs=20, batch=450)
    return seen


def test_a_rate_that_disturbs_at_first_does_not_end_a_training(monkeypatch):
    """Worse than at the start for ten looks, but better at each: the rate is falling, and the end is the best."""
    seen = looks(monkeypatch, [1.0, 9.0, *np.linspace(8, 0.5, 19)])
    assert seen[-1].step == seen[-1].steps and seen[-1].best == 0.5


def test_a_training_that_only_gets_worse_ends_early(monkeypatch):
    assert looks(monkeypatch, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])[-1].step == 6


def test_a_drop_of_auc_that_no_gate_sees_ends_a_training(monkeypatch):
    assert looks(monkeypatch, [1.0], drop=9e-6)[-1].step == 0
    monkeypatch.undo()
    graph, seen = small(), []
    finetune(graph, given(graph, progress=seen.append), graph)  # already what it shall be
    assert seen[-1].step == 0 and 0 <= seen[-1].drop <= loop.ENOUGH


def test_few_rows_are_seen_more_often_than_many():
    graph, told = small(), []
    training = given(graph, 600, progress=lambda found: told.append(found.steps))
    apply(graph, Recipe((Qat(),)), testing.rows(graph, 400, 0), training)
    assert told[0] == loop.LEAST_STEPS
    apply(graph, Recipe((Qat(epochs=2),)), testing.rows(graph, 400, 0), training)
    assert told[-1] == 2 * 3  # 536 rows in batches of 256


def test_rows_to_learn_from_are_recombined_of_the_two_sides_and_scored_by_the_original():
    graph = small()
    table, other = ({k: torch.from_numpy(a) for k, a in testing.rows(graph, 64, seed).items()} for seed in (1, 2))
    loss = loop._Loss("Qat", graph, table, Training({}), "original")
    mixed, targets = loss.recombined(table, loss.targets_of(np.arange(64)), other)
    for spec in graph.inputs:
        for half in spec.halves:
            at = (slice(None), list(half.columns)) if half.columns else slice(None)
            first, rest = mixed[spec.name][:32][at], mixed[spec.name][32:][at]
            assert torch.equal(first, (other if half.side == "candidate" else table)[spec.name][:32][at])
            assert torch.equal(rest, table[spec.name][32:][at])
    want = run(to_torch(graph), {name: array.numpy() for name, array in mixed.items()})[""]
    assert np.array_equal(targets["score"].numpy(), want)
    assert loss.recombines and not loop._Loss("Qat", graph, table, Training({}, np.arange(64) % 2), "labels").recombines
