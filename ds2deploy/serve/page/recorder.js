// Turns the microphone's blocks into 16-bit PCM, about ten messages per second.

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.size = Math.round(sampleRate / 10);
    this.start();
    this.port.onmessage = () => {
      this.send();
      this.port.postMessage({ ended: true });
      this.ended = true;
    };
  }

  start() {
    this.samples = new Int16Array(this.size);
    this.count = 0;
    this.peak = 0;
  }

  send() {
    const pcm = this.samples.slice(0, this.count).buffer;
    this.port.postMessage({ pcm, peak: this.peak }, [pcm]);
    this.start();
  }

  process(inputs) {
    const channels = inputs[0];
    const length = channels.length ? channels[0].length : 0;
    for (let i = 0; i < length; i += 1) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      const value = Math.max(-1, Math.min(1, sum / channels.length));
      this.peak = Math.max(this.peak, Math.abs(value));
      this.samples[this.count] = Math.round(value * 32767);
      this.count += 1;
      if (this.count === this.size) this.send();
    }
    return !this.ended;
  }
}

registerProcessor("recorder", Recorder);
