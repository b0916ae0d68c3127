static void step_0(ranker &r, i64 M, i64 q) {  // input
  uint8_t *v1 = (uint8_t *)(r.arena + 0);
  read_input<uint8_t, 3, 1, false>(r, 1, M, (uint8_t *)nullptr, v1, 3);
}
static void step_1(ranker &r, i64 M, i64 q) {  // input
  float *v1 = (float *)(r.arena + 320);
  read_input<float, 3, 4, false>(r, 0, M, (float *)nullptr, v1, 12);
}
static void step_2(ranker &r, i64 M, i64 q) {  // linear -> tanh -> where
  const float *v1 = (const float *)(r.arena + 320);
  // bn_linear_f32: 4 -> 6, 3 a row
  const float *k2 = (const float *)r.w[0];
  const float *k3 = (const float *)r.w[1];
  const uint8_t *v4 = (const uint8_t *)(r.arena + 0);
  const float *k5 = (const float *)r.w[2];
  float *v6 = (float *)(r.arena + 2752);
  auto row = [&](int t) FORCE { return v1 + (i64)(t / 3) * 12 + t % 3 * 4; };
  auto begin = [&](int o) FORCE { return F{}; };
  auto end = [&](int t, int o, auto sums, auto whole) FORCE {
    const int lanes = whole.value || 6 - o > LANES ? LANES : 6 - o; (void)lanes;
    const int m = t / 3, s = t % 3;
    const V<float> y = sums + load(k3 + o);
    const V<float> y7 = (v_tanh(y));
    const V<float> y8 = ((to<int32_t>(splat(*((v4 + m * (q * 3)) + s * 1))) != 0) ? y7 : splat(*(k5)));
    put((v6 + m * 32) + s * 6 + o, y8, lanes);
  };
  products<DotF32, 6, 4>((int)M * 3, k2, row, begin, end);
}
static void step_3(ranker &r, i64 M, i64 q) {  // softmax
  const float *v1 = (const float *)(r.arena + 2752);
  float *v2 = (float *)(r.arena + 9024);
  for (i64 m = 0; m < M; m++) softmax_row<3, 6, 1>((v1 + m * 32), (v2 + m * 32));
}
static void step_4(ranker &r, i64 M, i64 q) {  // mul
  const float *v1 = (const float *)(r.arena + 9024);
  const float *v2 = (const float *)(r.arena + 2752);
  float *v3 = (float *)(r.arena + 15296);
  for (i64 m = 0; m < M; m++) {
    for (i64 i = 0; i < 18; i += LANES) {
      const V<float> y4 = (load((v1 + m * 32) + i) * load((v2 + m * 32) + i));
      store((v3 + m * 32) + i, y4);
    }
  }
}
static void step_5(ranker &r, i64 M, i64 q) {  // mean
  const float *v1 = (const float *)(r.arena + 15296);
  float *v2 = (float *)(r.arena + 320);
  for (i64 m = 0; m < M; m++) reduce_row<MEAN_OF, 1, 3, 6>((v1 + m * 32), (v2 + m * 6));
}
static void prefetch_request(const ranker &r, i64 from, i64 count) {
}
static void prefetch_candidate(const ranker &r, i64 from, i64 count) {
}
static void rows_from(ranker &r, const void *const *inputs, i64 at) {
  r.half[0] = {(const char *)inputs[0] + at * 48, 12, nullptr};
  r.half[1] = {(const char *)inputs[1] + at * 3, 3, nullptr};
}
static void request_from(ranker &r, const void *const *inputs, i64 at) {
  r.half[1] = {(const char *)inputs[1] + at * 3, 3, nullptr};
}
static void candidates_from(ranker &r, const void *const *inputs, i64 at) {
  r.half[0] = {(const char *)inputs[0] + at * 48, 12, nullptr};
}
static void request_side(ranker &r, i64 M, i64 q) {
  step_0(r, M, q);
}
static void candidate_side(ranker &r, i64 M, i64 q) {
  step_1(r, M, q);
  step_2(r, M, q);
  step_3(r, M, q);
  step_4(r, M, q);
  step_5(r, M, q);
}
static void write_outputs(ranker &r, i64 M, i64 q, i64 at, void *const *outputs) {
  float *y0 = (float *)outputs[0] + at * 6;
  for (i64 m = 0; m < M; m++) memcpy(y0 + m * 6, (const float *)(r.arena + 320) + m * (6), 6 * sizeof(float));
}
