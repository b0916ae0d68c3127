// A ranker that burnish compiled to WebAssembly, for browsers, Node and whatever else has its SIMD; needs the files beside it and nothing else.
//
//   import { load } from "./ranker.mjs";
//   const ranker = await load();
//   const { score } = ranker.score({ user: [7n] }, { item: itemIds });   // one request and its candidates
//
// The arrays of an input lie row by row, as typed arrays of its dtype (ranker.inputs says which) or as plain arrays of numbers.

const WEIGHT_BYTES = $weight_bytes;
const WEIGHT_SHA256 = "$weight_sha256";
const GOLDEN_ROWS = $golden_rows;
const ARRAYS = { float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, bool: Uint8Array };
const ARRAY_OF = { ...ARRAYS, bfloat16: Float32Array, float16: Float32Array };
const OPENING = { 4: "weights.bin was not packed for ranker.wasm, or is cut short", 5: "there is no memory for the ranker's arena" };

/** The ranker whose files lie at the URL `where`; weights.bin comes in pieces of `piece` bytes, and `progress(done, all)` is told of each. */
export async function load(where = new URL(".", import.meta.url), { piece = 1 << 20, progress = () => {} } = {}) {
  const code = await whole(new URL("ranker.wasm", where));
  const { instance } = await WebAssembly.instantiate(code, {});
  const wasm = instance.exports;
  wasm._initialize();
  const at = 65536 * wasm.memory.grow(Math.ceil(WEIGHT_BYTES / 65536)); // pages of their own: malloc rounds up to a power of two
  let done = 0;
  for await (const part of pieces(new URL("weights.bin", where), WEIGHT_BYTES, piece)) {
    if (done + part.length > WEIGHT_BYTES) throw new Error("weights.bin is longer than " + WEIGHT_BYTES + " bytes. Copy the export again");
    new Uint8Array(wasm.memory.buffer, at).set(part, done);
    done += part.length;
    progress(done, WEIGHT_BYTES);
  }
  if (done !== WEIGHT_BYTES) throw new Error("weights.bin has " + done + " bytes, expected " + WEIGHT_BYTES + ". Copy the export again");
  if (globalThis.crypto?.subtle) {
    const hash = await crypto.subtle.digest("SHA-256", new Uint8Array(wasm.memory.buffer, at, WEIGHT_BYTES));
    const hex = Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== WEIGHT_SHA256) throw new Error("weights.bin is damaged: its sha256 is not the one it was exported with. Copy the export again");
  }
  return new Ranker(wasm, at, where);
}

export class Ranker {
  #wasm;
  #handle;
  #where;
  #kept = new Map(); // name of a place -> [address, bytes]: arrays are copied into the same places call after call

  constructor(wasm, weights, where) {
    this.#wasm = wasm;
    this.#where = where;
    const told = JSON.parse(this.#text(wasm.ranker_describe()));
    this.inputs = told.inputs;
    this.halves = told.halves;
    this.outputs = told.outputs;
    const error = this.#place("error", 4);
    this.#handle = wasm.ranker_open_memory(weights, WEIGHT_BYTES, error);
    if (!this.#handle) throw new Error(OPENING[new Int32Array(wasm.memory.buffer, error, 1)[0]] ?? "the ranker cannot be opened");
  }

  /** Bytes of memory that the ranker has taken: weights, arena and the arrays of calls. */
  get memoryBytes() {
    return this.#wasm.memory.buffer.byteLength;
  }

  /** One request beside its candidates: values by input name, one row in `request`, N in `candidates`. Gives each output by name, N rows. */
  score(request, candidates) {
    const given = this.halves.map((half) => (half.side === "request" ? request : candidates)?.[half.name]);
    const n = this.#rowsOf(this.halves, given, (half) => half.side === "candidate") ?? 1;
    const counts = this.#place("counts", 16);
    new BigInt64Array(this.#wasm.memory.buffer, counts, 2).set([0n, BigInt(n)]);
    return this.#call("ranker_requests", [1n, counts], this.halves, given, n, (half) => (half.side === "candidate" ? n : 1));
  }

  /** A plain table: every input has N rows. Gives each output by name, N rows. */
  rows(table) {
    const given = this.inputs.map((input) => table[input.name]);
    const n = this.#rowsOf(this.inputs, given, () => true) ?? 0;
    return this.#call("ranker_rows", [BigInt(n)], this.inputs, given, n, () => n);
  }

  /** Scores the golden rows; the largest difference to what was exported, relative to the larger of 1 and the largest score. */
  async verify() {
    const file = async (name) => (await whole(new URL("golden/" + name, this.#where))).buffer;
    const table = {};
    for (const [i, input] of this.inputs.entries()) table[input.name] = new ARRAYS[input.dtype](await file(`input_$${i}.bin`));
    const got = this.rows(table);
    let worst = 0;
    for (const [i, output] of this.outputs.entries()) {
      const want = new ARRAY_OF[output.dtype](await file(`output_$${i}.bin`));
      let scale = 1;
      for (const value of want) scale = Math.max(scale, Math.abs(Number(value)) || 0);
      want.forEach((value, k) => {
        if (!Object.is(value, got[output.name][k]) && value !== got[output.name][k])
          worst = Math.max(worst, Math.abs(Number(value) - Number(got[output.name][k])) / scale || 1);
      });
    }
    return { rows: GOLDEN_ROWS, difference: worst };
  }

  close() {
    this.#wasm.ranker_close(this.#handle);
    this.#handle = 0;
  }

  #rowsOf(specs, given, counted) {
    let n;
    specs.forEach((spec, i) => {
      if (given[i] === undefined) throw new TypeError(`input '$${spec.name}' is missing` + (spec.side ? ` among the $${spec.side} values` : ""));
      const rows = given[i].length / size(spec);
      if (!counted(spec)) {
        if (rows !== 1) throw new RangeError(`input '$${spec.name}' has $${given[i].length} values, expected $${size(spec)}: a request has one row for all`);
      } else if (!Number.isInteger(rows) || (n !== undefined && n !== rows)) {
        throw new RangeError(`input '$${spec.name}' has $${given[i].length} values, expected $${size(spec)} a row` + (n === undefined ? "" : ` for $${n} rows`));
      } else {
        n = rows;
      }
    });
    return n;
  }

  #call(name, counts, specs, given, n, rows) {
    if (!this.#handle) throw new Error("the ranker is closed");
    if (n === 0) return Object.fromEntries(this.outputs.map((output) => [output.name, new ARRAY_OF[output.dtype](0)]));
    const places = specs.map((spec, i) => this.#place("input " + i, rows(spec) * size(spec) * ARRAYS[spec.dtype].BYTES_PER_ELEMENT));
    const found = this.outputs.map((output, i) => this.#place("output " + i, n * size(output) * ARRAY_OF[output.dtype].BYTES_PER_ELEMENT));
    const inputs = this.#place("inputs", 4 * places.length + 4);
    const outputs = this.#place("outputs", 4 * found.length);
    const { buffer } = this.#wasm.memory; // the memory may have grown: views are made after the last place
    specs.forEach((spec, i) => {
      const values = given[i];
      const wide = spec.dtype === "int64" && !(values instanceof BigInt64Array);
      new ARRAYS[spec.dtype](buffer, places[i], rows(spec) * size(spec)).set(wide ? Array.from(values, BigInt) : values);
    });
    new Uint32Array(buffer, inputs, places.length).set(places);
    new Uint32Array(buffer, outputs, found.length).set(found);
    if (this.#wasm[name](this.#handle, ...counts, inputs, outputs)) throw this.#fault();
    const read = (output, i) => new ARRAY_OF[output.dtype](buffer, found[i], n * size(output)).slice();
    return Object.fromEntries(this.outputs.map((output, i) => [output.name, read(output, i)]));
  }

  #fault() {
    const view = new DataView(this.#wasm.memory.buffer, this.#wasm.ranker_fault(this.#handle), 24);
    const row = view.getBigInt64(8, true);
    const half = view.getInt32(0, true) === 2 ? this.halves[view.getInt32(4, true)] : undefined;
    return new RangeError(half ? `input '$${half.name}' has an id outside its bounds at row $${row}` : `row $${row} asks for entry $${view.getBigInt64(16, true)}, which its table does not have`);
  }

  #place(name, bytes) {
    const kept = this.#kept.get(name);
    if (kept && kept[1] >= bytes) return kept[0];
    if (kept) this.#wasm.free(kept[0]);
    const at = this.#wasm.malloc(bytes + 8);
    if (!at) throw new Error("there is no memory for " + bytes + " bytes");
    this.#kept.set(name, [at, bytes]);
    return at;
  }

  #text(at) {
    const bytes = new Uint8Array(this.#wasm.memory.buffer, at);
    return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
  }
}

const size = (spec) => spec.shape.reduce((all, n) => all * n, 1);

async function* pieces(url, bytes, piece) {
  if (url.protocol === "file:") {
    const { open } = await import("node:fs/promises");
    const file = await open(url);
    try {
      for (let at = 0; ; ) {
        const { bytesRead, buffer } = await file.read(new Uint8Array(piece), 0, piece, at);
        if (bytesRead === 0) return;
        yield buffer.subarray(0, bytesRead);
        at += bytesRead;
      }
    } finally {
      await file.close();
    }
  }
  for (let at = 0; at < bytes; at += piece) {
    const answer = await fetch(url, { headers: { Range: `bytes=$${at}-$${Math.min(at + piece, bytes) - 1}` } });
    if (!answer.ok) throw new Error(`$${url} cannot be fetched: status $${answer.status}`);
    if (answer.status === 206) {
      yield new Uint8Array(await answer.arrayBuffer());
      continue;
    }
    for (let reader = answer.body.getReader(), part; !(part = await reader.read()).done; ) yield part.value; // a server without ranges sends it all
    return;
  }
}

async function whole(url) {
  const parts = [];
  if (url.protocol === "file:") {
    for await (const part of pieces(url, Infinity, 1 << 20)) parts.push(part);
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  }
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`$${url} cannot be fetched: status $${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}
