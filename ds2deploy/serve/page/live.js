// Session of the microphone: sends audio to /stream, and shows the text.

import { ServerError, openStream, sentence } from "./api.js";
import { Microphone, wavFile } from "./microphone.js";
import { addLine, showLive } from "./view.js";

const SEGMENT_S = 1.2; // silence that begins a new line
const LATE_S = 3; // audio that may wait in the browser before the page says so
const MOST_BYTES = 20e6; // audio for a model of whole utterances

// Speech for a streaming model.
export class LiveSession {
  // on.level(peak), on.late(whether the server is behind), on.end(error or null)
  constructor(model, hotWords, on) {
    Object.assign(this, { model, hotWords, on, words: [], error: null });
  }

  async start() {
    this.microphone = await Microphone.open(
      (pcm, peak) => this.send(pcm, peak),
      () => this.stop("The microphone was disconnected."),
    );
    try {
      this.socket = openStream();
      await this.opened();
      this.socket.send(JSON.stringify({
        sample_rate: this.microphone.sampleRate, model: this.model, hot_words: this.hotWords,
        endpoint: SEGMENT_S,
      }));
      await this.microphone.start();
    } catch (error) {
      await this.microphone.close();
      throw error;
    }
    showLive([], "");
  }

  opened() {
    const { socket } = this;
    return new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onclose = () => reject(new ServerError("The server refused the connection."));
    }).then(() => {
      socket.onmessage = ({ data }) => this.take(JSON.parse(data));
      socket.onclose = ({ code, reason }) => this.closed(code, reason);
    });
  }

  send(pcm, peak) {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    this.socket.send(pcm);
    this.on.level(peak);
    this.on.late(this.socket.bufferedAmount / (2 * this.microphone.sampleRate) > LATE_S);
  }

  setHotWords(hotWords) {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    this.socket.send(JSON.stringify({ hot_words: hotWords }));
  }

  take(message) {
    if (message.error) {
      const wait = message.error.retry_after_ms;
      const when = wait ? ` Try again in ${Math.ceil(wait / 1000)} s.` : "";
      this.error = new ServerError(sentence(message.error.message) + when);
    } else if (message.segment || message.final) {
      addLine((message.segment ?? message).words);
      this.words = [];
      this.finished ||= Boolean(message.final);
      showLive([], "");
    } else {
      this.words.push(...message.words);
      showLive(this.words, message.tail);
    }
  }

  // Ends the audio; the rest of the text still arrives.
  async stop(problem = "") {
    if (this.stopping) return;
    this.stopping = true;
    if (problem) this.error ??= new ServerError(problem);
    await this.microphone.close();
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send('{"end":true}');
  }

  async closed(code, reason) {
    this.stopping = true;
    await this.microphone.close();
    addLine(this.words);
    showLive([], "", false);
    if (code === 1001) this.error ??= new ServerError("The server is shutting down. The text is complete.");
    else if (!this.finished) {
      this.error ??= new ServerError(reason ? sentence(reason) : "The connection was lost. " +
        "The text up to then is kept; start again to continue.");
    }
    this.on.end(this.error);
  }
}

// Speech for a model of whole utterances, which is recognised at its end.
export class CollectedSession {
  // on.level(peak), on.end(error or null, WAV file)
  constructor(on) {
    Object.assign(this, { on, pieces: [], size: 0 });
  }

  async start() {
    this.microphone = await Microphone.open(
      (pcm, peak) => {
        this.pieces.push(pcm);
        this.size += pcm.byteLength;
        this.on.level(peak);
        if (this.size > MOST_BYTES) this.stop();
      },
      () => this.stop(),
    );
    await this.microphone.start();
  }

  setHotWords() {}

  async stop() {
    if (this.stopping) return;
    this.stopping = true;
    await this.microphone.close();
    this.on.end(null, wavFile(this.pieces, this.microphone.sampleRate));
  }
}
