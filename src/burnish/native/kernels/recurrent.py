"""GRU over the steps of a row: the input's share of all gates in one product, then the states one after another."""

from __future__ import annotations

from burnish.native.code import Code
from burnish.native.plan import Step

TEMPLATE = r"""
template <int T, int I_, int H>
INL void gru_row(const float *x, const float *h0, const float *w_ih, const float *w_hh, const float *b_ih, const float *b_hh,
                 float *scratch, float *y) {
  constexpr int G = (3 * H + 15) / 16 * 16;
  float *in = scratch, *back = scratch + T * G;
  auto zero = [](int) FORCE { return F{}; };
  auto write_in = [&](int t, int o, auto sums, auto) FORCE { store(in + t * G + o, sums + load(b_ih + o)); };
  products<DotF32, 3 * H, I_>(
      T, w_ih, [&](int t) FORCE { return x + t * I_; }, zero, write_in);
  const float *h = h0;
  for (int t = 0; t < T; t++) {
    auto write_back = [&](int, int o, auto sums, auto) FORCE { store(back + o, sums + load(b_hh + o)); };
    products<DotF32, 3 * H, H>(
        1, w_hh, [&](int) FORCE { return h; }, zero, write_back);
    const float *g = in + t * G;
    for (int i = 0; i < H; i += LANES) {
      F reset = v_sigmoid(load(g + i) + load(back + i)), update = v_sigmoid(load(g + H + i) + load(back + H + i));
      F fresh = v_tanh(load(g + 2 * H + i) + reset * load(back + 2 * H + i));
      put(y + t * H + i, (1.f - update) * fresh + update * load(h + i), H - i < LANES ? H - i : LANES);
    }
    h = y + t * H;
  }
}
"""


def emit(code: Code, step: Step) -> None:
    node = step.head
    assert node is not None
    x, h0, w_ih, w_hh, b_ih, b_hh = node.inputs
    steps, width, hidden = x.shape[0], x.shape[1], w_hh.shape[1]
    gates = -(-3 * hidden // 16) * 16
    rx, rh, y = code.read(x), code.read(h0), code.write(node)
    w = [code.pointer("float", "panels_f32", v) for v in (w_ih, w_hh)]
    b = [code.pointer("float", "plain", v) for v in (b_ih, b_hh)]
    code.scratch((steps + 1) * gates * 4 + 128)
    code.add(
        f"for (i64 m = 0; m < M; m++) gru_row<{steps}, {width}, {hidden}>({rx.row()}, {rh.row()}, {w[0]}, {w[1]}, {b[0]}, {b[1]}, "
        f"(float *)(r.arena + SCRATCH), {y.row()});"
    )
