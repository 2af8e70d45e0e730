// Streaming speech recognition in a page: one ONNX file and onnxruntime-web, nothing else.
//
// The file is an artifact of `ds2deploy export --streaming --waveform`: the graph computes features,
// network and streaming state; labels, sample rate and block layout are in its metadata.

import * as ort from "onnxruntime-web/wasm";

const BLANK = 0;
const ARRAYS = { float32: Float32Array, int64: BigInt64Array };

/** Load an artifact from a URL; throws an Error that names the URL and the remedy. */
export async function load(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: HTTP status ${response.status}; see README.md`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  const description = readDescription(bytes);
  if (description.kind !== "streaming" || description.input !== "waveform") {
    throw new Error(`${url}: not a streaming waveform model; ds2deploy export --streaming --waveform`);
  }
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return new Recognizer(session, description);
}

/** A model. `sampleRate` is the rate that its streams expect, in Hz. */
class Recognizer {
  constructor(session, description) {
    this.session = session;
    this.labels = [...description.labels];
    this.outputDelay = description.blocks.output_delay;
    this.sampleRate = description.features.sample_rate;
    this.inputs = new Map(session.inputMetadata.map((input) => [input.name, input]));
    this.blockSize = this.inputs.get("waveform").shape[1];
  }

  /** Start a stream. */
  stream() {
    return new Stream(this);
  }

  /** Zeros for every state tensor of a new stream. */
  newState() {
    const state = {};
    for (const [name, { type, shape }] of this.inputs) {
      if (!name.startsWith("state.")) continue;
      const dimensions = [1, ...shape.slice(1)];
      const size = dimensions.reduce((product, one) => product * one, 1);
      state[name] = new ort.Tensor(type, new ARRAYS[type](size), dimensions);
    }
    return state;
  }
}

/** One utterance. Calls may overlap: they are processed in their order. */
class Stream {
  constructor(recognizer) {
    this.recognizer = recognizer;
    this.state = recognizer.newState();
    this.waiting = new Float32Array(0); // samples of a block that is not full yet
    this.received = 0; // samples that the network has processed
    this.skip = recognizer.outputDelay; // output rows before the first frame
    this.frames = 0;
    this.last = BLANK;
    this.letters = "";
    this.work = Promise.resolve();
  }

  /** Process samples, a Float32Array in [-1, 1]; resolves to the text so far. */
  accept(samples) {
    return this.#inTurn(() => this.#take(samples));
  }

  /** End the utterance; resolves to its whole text. */
  finish() {
    return this.#inTurn(() => this.#end());
  }

  get text() {
    return this.letters.split(" ").filter(Boolean).join(" ");
  }

  #inTurn(step) {
    const result = this.work.then(step).then(() => this.text);
    this.work = result.catch(() => {});
    return result;
  }

  async #take(samples) {
    const size = this.recognizer.blockSize;
    const joined = new Float32Array(this.waiting.length + samples.length);
    joined.set(this.waiting);
    joined.set(samples, this.waiting.length);
    let start = 0;
    for (; start + size <= joined.length; start += size) {
      this.received += size;
      await this.#run(joined.slice(start, start + size), this.received);
    }
    this.waiting = joined.slice(start);
  }

  async #end() {
    const total = this.received + this.waiting.length;
    if (!total) return;
    const block = new Float32Array(this.recognizer.blockSize);
    block.set(this.waiting);
    // Blocks of zeros follow the last samples until the network has put out every frame.
    let outputLength = await this.#run(block, total);
    while (this.frames < outputLength) {
      outputLength = await this.#run(new Float32Array(this.recognizer.blockSize), total);
    }
  }

  /** Run one block; `length` counts the samples from the start of the stream to its end, or to the
   * end of this block while it is open. Returns the number of output frames up to there. */
  async #run(block, length) {
    const found = await this.recognizer.session.run({
      waveform: new ort.Tensor("float32", block, [1, block.length]),
      lengths: new ort.Tensor("int64", BigInt64Array.of(BigInt(length)), [1]),
      ...this.state,
    });
    for (const name of Object.keys(this.state)) {
      this.state[name] = found[name.replace("state.", "next.")];
    }
    const outputLength = Number(found.output_lengths.data[0]);
    this.#decode(found.log_probs, outputLength);
    return outputLength;
  }

  /** Greedy CTC: the best label of each frame, without repetitions and blanks. */
  #decode({ data, dims: [, rows, labels] }, outputLength) {
    for (let row = 0; row < rows; row++) {
      if (this.skip > 0) {
        this.skip--;
        continue;
      }
      if (this.frames === outputLength) return;
      const scores = data.subarray(row * labels, (row + 1) * labels);
      const best = scores.indexOf(Math.max(...scores));
      if (best !== BLANK && best !== this.last) this.letters += this.recognizer.labels[best];
      this.last = best;
      this.frames++;
    }
  }
}

/** Read the description of an artifact; an empty one for another file. */
function readDescription(bytes) {
  try {
    return JSON.parse(readMetadata(bytes).get("ds2deploy"));
  } catch {
    return {};
  }
}

/** Read `metadata_props` (field 14) of an ONNX file, a protocol buffer, without its graph. */
function readMetadata(bytes) {
  const entries = new Map();
  for (const [field, content] of readFields(bytes)) {
    if (field !== 14) continue;
    const texts = [...readFields(content)].map(([, text]) => new TextDecoder().decode(text));
    entries.set(texts[0], texts[1]);
  }
  return entries;
}

/** Yield the number and content of every length-delimited field; skip the others. */
function* readFields(bytes) {
  let at = 0;
  const readNumber = () => {
    let number = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      number += (byte & 127) * scale;
      if (!(byte & 128)) return number;
    }
  };
  while (at < bytes.length) {
    const tag = readNumber();
    const kind = tag % 8;
    if (kind === 0) readNumber();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = readNumber();
      yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
      at += length;
    } else throw new Error("not an ONNX file");
  }
}
