// Speech recognition in the browser: a streaming waveform artifact on onnxruntime-web.
//
// The artifact is whole: features, network and states are in the graph, labels and block size in
// its metadata. Nothing leaves the page.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // more need headers of the server (cross-origin isolation)

const BLANK = 0;

/** A model, opened from the bytes of `model.streaming.waveform.onnx`. */
export class Recognizer {
  /** @param {ArrayBuffer} bytes */
  static async open(bytes) {
    const facts = readDescription(new Uint8Array(bytes));
    if (facts.kind !== "streaming" || facts.input !== "waveform") {
      throw new Error("This file is not a streaming waveform artifact: ds2deploy export --streaming --waveform.");
    }
    return new Recognizer(await ort.InferenceSession.create(bytes), facts);
  }

  constructor(session, facts) {
    this.session = session;
    this.labels = [...facts.labels];
    this.delay = facts.blocks.output_delay;
    this.sampleRate = facts.features.sample_rate;
    this.inputs = Object.fromEntries(session.inputMetadata.map((one) => [one.name, one]));
    this.block = this.inputs.waveform.shape[1];
  }

  /** Begin a stream. */
  stream() {
    return new Stream(this);
  }
}

/** One utterance, block by block. */
class Stream {
  constructor(recognizer) {
    this.recognizer = recognizer;
    this.states = {};
    for (const [name, { type, shape }] of Object.entries(recognizer.inputs)) {
      if (name.startsWith("state.")) this.states[name] = zeros(type, shape.slice(1));
    }
    this.waiting = new Float32Array(0);
    this.received = 0;
    this.begun = 0; // samples of the blocks that were run
    this.rows = 0; // rows of log-probabilities, from before the first output frame on
    this.last = BLANK;
    this.text = "";
  }

  /** Take samples in [-1, 1] at the model's rate; `text` is up to date afterwards. */
  async accept(samples) {
    this.received += samples.length;
    const joined = new Float32Array(this.waiting.length + samples.length);
    joined.set(this.waiting);
    joined.set(samples, this.waiting.length);
    this.waiting = joined;
    // A full last block waits: only with its successor, or the end, is its length known.
    while (this.waiting.length > this.recognizer.block) await this.#step(null);
    return this.text;
  }

  /** End the audio, and return the text. */
  async finish() {
    let frames = Infinity;
    while (this.rows < frames + this.recognizer.delay) frames = await this.#step(this.received);
    return this.text.trim().replace(/\s+/g, " ");
  }

  /** Run a block; `total` is the number of samples of a stream that has ended. */
  async #step(total) {
    const { session, block, labels, delay } = this.recognizer;
    const piece = new Float32Array(block);
    piece.set(this.waiting.subarray(0, block));
    this.waiting = this.waiting.slice(block);
    this.begun += block;
    const ended = total !== null && this.begun >= total;
    const length = ended ? total : this.begun; // of an open stream: the end of the block
    const found = await session.run({
      waveform: new ort.Tensor("float32", piece, [1, block]),
      lengths: new ort.Tensor("int64", BigInt64Array.of(BigInt(length)), [1]),
      ...this.states,
    });
    for (const name of Object.keys(this.states)) {
      this.states[name] = found[`next.${name.slice("state.".length)}`];
    }
    const frames = ended ? Number(found.output_lengths.data[0]) : Infinity;
    const [, rows, count] = found.log_probs.dims;
    for (let row = 0; row < rows; row++, this.rows++) {
      if (this.rows < delay || this.rows >= frames + delay) continue;
      const best = largest(found.log_probs.data.subarray(row * count, (row + 1) * count));
      if (best !== BLANK && best !== this.last) this.text += labels[best];
      this.last = best;
    }
    return frames;
  }
}

function largest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

function zeros(type, shape) {
  const size = shape.reduce((product, one) => product * one, 1);
  const half = globalThis.Float16Array ?? Uint16Array;
  const Kind = { float32: Float32Array, float16: half, int64: BigInt64Array }[type];
  return new ort.Tensor(type, new Kind(size), [1, ...shape]);
}

/** Read the description: the value beside the key "ds2deploy" in the metadata at the file's end. */
function readDescription(bytes) {
  const key = new TextEncoder().encode("ds2deploy\x12"); // the key, then field 2: the value
  for (let at = bytes.length - key.length; at >= 0; at--) {
    if (!key.every((value, i) => bytes[at + i] === value)) continue;
    let [size, shift, start] = [0, 0, at + key.length];
    do {
      size += (bytes[start] & 0x7f) * 2 ** shift;
      shift += 7;
    } while (bytes[start++] & 0x80);
    return JSON.parse(new TextDecoder().decode(bytes.subarray(start, start + size)));
  }
  throw new Error("This file is not an artifact of ds2deploy: choose an .onnx file from ds2deploy export.");
}
