/** Values of an input or output, row by row: typed by its dtype. */
export type Values = Float32Array | Float64Array | BigInt64Array | Int32Array | Uint8Array;
/** What an input may be given as: its typed array, or numbers that fit it. */
export type Given = Values | readonly number[] | readonly bigint[];

export interface Spec {
  readonly name: string;
  readonly dtype: "float32" | "float64" | "bfloat16" | "float16" | "int64" | "int32" | "bool";
  readonly shape: readonly number[];
}

export interface HalfSpec extends Spec {
  readonly side: "request" | "candidate";
}

export interface Options {
  /** Bytes of weights.bin that are fetched at once; 1 MiB unless told. */
  piece?: number;
  /** Told of each piece that came. */
  progress?: (done: number, all: number) => void;
}

/** The inputs of this model. */
export type InputName = $input_names;
/** Inputs, or halves of them, that a request gives once. */
export type RequestName = $request_names;
/** Inputs, or halves of them, that each candidate gives. */
export type CandidateName = $candidate_names;
export type OutputName = $output_names;
export type Scores = Record<OutputName, Values>;

/** The ranker whose files lie at `where` (beside this module unless told). */
export function load(where?: URL, options?: Options): Promise<Ranker>;

export class Ranker {
  private constructor();
  readonly inputs: readonly Spec[];
  readonly halves: readonly HalfSpec[];
  readonly outputs: readonly Spec[];
  readonly memoryBytes: number;
  /** One request beside its N candidates; every output, N rows. RangeError for an id outside its table or an array of another length. */
  score(request: Record<RequestName, Given>, candidates: Record<CandidateName, Given>): Scores;
  /** A plain table of N rows; every output, N rows. */
  rows(table: Record<InputName, Given>): Scores;
  /** Scores the golden rows; the largest difference to what was exported. */
  verify(): Promise<{ rows: number; difference: number }>;
  close(): void;
}
