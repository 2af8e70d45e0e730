// Runs in the audio thread: sends what the microphone hears to the page, in pieces of 128 samples.
registerProcessor(
  "microphone",
  class extends AudioWorkletProcessor {
    process([[samples]]) {
      if (samples) this.port.postMessage(samples.slice());
      return true;
    }
  },
);
