static void step_0(ranker &r, i64 M, i64 q) {  // input
  float *v1 = (float *)(r.arena + 0);
  read_input<float, 5, 1, false>(r, 0, M, (float *)nullptr, v1, 5);
}
static void step_1(ranker &r, i64 M, i64 q) {  // input
  const int64_t *k1 = (const int64_t *)r.w[0];
  int64_t *v2 = (int64_t *)(r.arena + 1088);
  read_input<int64_t, 2, 1, true>(r, 1, M, k1, v2, 2);
}
static void step_2(ranker &r, i64 M, i64 q) {  // lookup
  const TableF32 table1 = {(const float *)r.w[1], nullptr};
  const int64_t *v2 = (const int64_t *)(r.arena + 1088);
  float *v3 = (float *)(r.arena + 2004);
  // bn_lookup_f32_16
  for (i64 m = 0; m < M; m++) for (int t = 0; t < 1; t++) {
    const i64 id = checked(r, (v2 + m * 2)[t], r.rows[1], 1, m);
    lookup_row<16>(table1, id, (v3 + m * 48) + t * 16);
  }
}
static void step_3(ranker &r, i64 M, i64 q) {  // lookup
  const TableF32 table1 = {(const float *)r.w[2], nullptr};
  const int64_t *v2 = (const int64_t *)(r.arena + 1096);
  float *v3 = (float *)(r.arena + 2068);
  // bn_lookup_f32_16
  for (i64 m = 0; m < M; m++) for (int t = 0; t < 1; t++) {
    const i64 id = checked(r, (v2 + m * 2)[t], r.rows[2], 2, m);
    lookup_row<16>(table1, id, (v3 + m * 48) + t * 16);
  }
}
static void step_4(ranker &r, i64 M, i64 q) {  // concat
  const float *v1 = (const float *)(r.arena + 0);
  float *v2 = (float *)(r.arena + 1984);
  for (i64 m = 0; m < M; m++) {
    copy_run<5>((v1 + m * (q * 5)) + 0, (v2 + m * 48) + 0);
  }
}
static void step_5(ranker &r, i64 M, i64 q) {  // quantize
  const float *v1 = (const float *)(r.arena + 1984);
  const float *k2 = (const float *)r.w[3];
  uint8_t *v3 = (uint8_t *)(r.arena + 11328);
  const float *k4 = (const float *)r.w[4];
  for (i64 m = 0; m < M; m++) {
    for (i64 i = 0; i < 37; i += LANES) {
      const V<uint8_t> y5 = quantize(load((v1 + m * 48) + i), splat(*(k2)), splat(k4[0]), splat(k4[1]), splat((int32_t)k4[2]));
      store((v3 + m * 48) + i, y5);
    }
  }
}
static void step_6(ranker &r, i64 M, i64 q) {  // qlinear -> mul -> add
  const uint8_t *v1 = (const uint8_t *)(r.arena + 11328);
  // bn_linear_u8s8f32: 37 -> 37
  const int8_t *k2 = (const int8_t *)r.w[5];
  const float *k3 = (const float *)r.w[6];
  const float *k4 = (const float *)r.w[7];
  const int32_t *k5 = (const int32_t *)r.w[8];
  const float *v6 = (const float *)(r.arena + 1984);
  float *v7 = (float *)(r.arena + 13760);
  auto row = [&](int t) FORCE { return v1 + (i64)t * 48; };
  auto begin = [&](int o) FORCE { return load(k5 + (DotU8::shift ? 37 : 0) + o); };
  auto end = [&](int t, int o, auto sums, auto whole) FORCE {
    const int lanes = whole.value || 37 - o > LANES ? LANES : 37 - o; (void)lanes;
    const int m = t, s = 0; (void)s;
    const V<float> y = to<float>(sums) * load(k3 + o) + load(k4 + o);
    const V<float> y8 = (load((v6 + m * 48) + o) * y);
    const V<float> y9 = (y8 + load((v6 + m * 48) + o));
    store((v7 + m * 48) + o, y9);
  };
  products<DotU8, 37, 10>((int)M * 1, k2, row, begin, end, r.arena + SCRATCH);
}
static void step_7(ranker &r, i64 M, i64 q) {  // linear
  const float *v1 = (const float *)(r.arena + 13760);
  // bn_linear_f32_1x1c64: 37 -> 1
  const float *k2 = (const float *)r.w[9];
  const float *k3 = (const float *)r.w[10];
  float *v4 = (float *)(r.arena + 1088);
  for (int t = 0; t < (int)M * 1; t++) {
    const auto *in = v1 + (i64)t * 48;
    V<float> sums = {};
    UNROLL for (int j = 0; j < 1; j++) sums[j % LANES] = dot_few<37>(in, k2 + j * 64);
    constexpr int o = 0, lanes = 1; (void)lanes;
    const int m = t, s = 0; (void)s;
    const V<float> y = sums + load(k3 + o);
    put((v4 + m * 1) + o, y, lanes);
  }
}
static void step_8(ranker &r, i64 M, i64 q) {  // sigmoid
  const float *v1 = (const float *)(r.arena + 1088);
  float *v2 = (float *)(r.arena + 1408);
  for (i64 i = 0; i < M * 1; i += LANES) {
    const V<float> y3 = (v_sigmoid(load(v1 + i)));
    store(v2 + i, y3);
  }
}
static void prefetch_request(const ranker &r, i64 from, i64 count) {
}
static void prefetch_candidate(const ranker &r, i64 from, i64 count) {
  const TableF32 table1 = {(const float *)r.w[1], nullptr};
  prefetch_rows<1, 1, 64, int64_t>(r, 1, from, count, 0, (const char *)table1.p, r.rows[1], nullptr);
  const TableF32 table2 = {(const float *)r.w[2], nullptr};
  prefetch_rows<1, 1, 64, int64_t>(r, 1, from, count, 1, (const char *)table2.p, r.rows[2], nullptr);
}
static void rows_from(ranker &r, const void *const *inputs, i64 at) {
  r.half[0] = {(const char *)inputs[0] + at * 20, 5, nullptr};
  r.half[1] = {(const char *)inputs[1] + at * 16, 2, nullptr};
}
static void request_from(ranker &r, const void *const *inputs, i64 at) {
  r.half[0] = {(const char *)inputs[0] + at * 20, 5, nullptr};
}
static void candidates_from(ranker &r, const void *const *inputs, i64 at) {
  r.half[1] = {(const char *)inputs[1] + at * 16, 2, nullptr};
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
  step_6(r, M, q);
  step_7(r, M, q);
  step_8(r, M, q);
}
static void write_outputs(ranker &r, i64 M, i64 q, i64 at, void *const *outputs) {
  float *y0 = (float *)outputs[0] + at * 1;
  for (i64 m = 0; m < M; m++) memcpy(y0 + m * 1, (const float *)(r.arena + 1408) + m * (1), 1 * sizeof(float));
}
