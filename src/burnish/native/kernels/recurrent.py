"""GRU over the steps of a block of rows: one product with the steps' inputs and one with the states for all rows together, step by step.

The steps of a request beside many candidates are one row: their share of the gates is computed once for a block. Scores of candidates then
still give each its own states (DIEN's AUGRU).
"""

from __future__ import annotations

from burnish.native.code import Code
from burnish.native.plan import Step

TEMPLATE = r"""
enum { GATES_ALONE, SCORES_SCALE, SCORES_REPLACE };
// M rows; x, h0 and scores may stand still from row to row (stride 0). y is (T, H) a row
template <int T, int I_, int H, int SCORES>
INL void gru_rows(i64 M, const float *x, i64 x_stride, const float *h0, i64 h0_stride, const float *scores, i64 score_stride,
                  const float *w_ih, const float *w_hh, const float *b_ih, const float *b_hh, float *scratch, float *y, i64 y_stride) {
  constexpr int G = (3 * H + 15) / 16 * 16;
  float *in = scratch, *back = scratch + (T > BLOCK ? T : BLOCK) * G;
  auto zero = [](int) FORCE { return F{}; };
  auto write_in = [&](int t, int o, auto sums, auto) FORCE { store(in + t * G + o, sums + load(b_ih + o)); };
  auto write_back = [&](int m, int o, auto sums, auto) FORCE { store(back + m * G + o, sums + load(b_hh + o)); };
  const bool shared = x_stride == 0 && M > 1;
  if (shared) products<DotF32, 3 * H, I_>(T, w_ih, [&](int t) FORCE { return x + t * I_; }, zero, write_in);
  const float *h = h0;
  i64 h_stride = h0_stride;
  for (int t = 0; t < T; t++) {
    if (!shared) products<DotF32, 3 * H, I_>((int)M, w_ih, [&](int m) FORCE { return x + m * x_stride + t * I_; }, zero, write_in);
    products<DotF32, 3 * H, H>((int)M, w_hh, [&](int m) FORCE { return h + m * h_stride; }, zero, write_back);
    for (i64 m = 0; m < M; m++) {
      const float *g = in + (shared ? t : m) * G, *b = back + m * G, *old = h + m * h_stride;
      float *out = y + m * y_stride + t * H;
      UNROLL
      for (int i = 0; i < H; i += LANES) {
        F reset = v_sigmoid(load(g + i) + load(b + i)), update = {};
        if constexpr (SCORES != SCORES_REPLACE) update = v_sigmoid(load(g + H + i) + load(b + H + i));
        F fresh = v_tanh(load(g + 2 * H + i) + reset * load(b + 2 * H + i));
        if constexpr (SCORES == SCORES_SCALE) update = 1.f - splat(scores[m * score_stride + t]) * update;
        if constexpr (SCORES == SCORES_REPLACE) update = 1.f - splat(scores[m * score_stride + t]);
        put(out + i, (1.f - update) * fresh + update * load(old + i), H - i < LANES ? H - i : LANES);
      }
    }
    h = y + t * H;
    h_stride = y_stride;
  }
}
"""


def emit(code: Code, step: Step) -> None:
    node = step.head
    assert node is not None
    x, h0, w_ih, w_hh, b_ih, b_hh, *scores = node.inputs
    steps, width, hidden = x.shape[0], x.shape[1], w_hh.shape[1]
    gates = -(-3 * hidden // 16) * 16
    operands = [code.read(v) for v in (x, h0, *scores)]
    y = code.write(node)
    w = [code.pointer("float", "panels_f32", v) for v in (w_ih, w_hh)]
    b = [code.pointer("float", "plain", v) for v in (b_ih, b_hh)]
    code.scratch((max(steps, code.plan.rows) + code.plan.rows) * gates * 4 + 128)
    kind = {None: "GATES_ALONE", "scale": "SCORES_SCALE", "replace": "SCORES_REPLACE"}[node["scores"]]
    places = [f"{r.name}, {r.stride}" for r in operands] + ["nullptr, 0"] * (3 - len(operands))
    code.add(f"// bn_gru_f32_{steps}_{hidden}{'_' + node['scores'] if scores else ''}")
    code.add(
        f"gru_rows<{steps}, {width}, {hidden}, {kind}>(M, {', '.join(places)}, {w[0]}, {w[1]}, {b[0]}, {b[1]}, "
        f"(float *)(r.arena + SCRATCH), {y.name}, {y.stride});"
    )
