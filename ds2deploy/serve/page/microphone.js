// Microphone input as 16-bit PCM at the rate of its audio context.

const REASONS = {
  NotAllowedError: "The browser did not allow the microphone. Allow it in this page's settings, " +
    "next to the address, then start again.",
  NotFoundError: "No microphone was found. Connect one, then start again.",
  NotReadableError: "The microphone cannot be opened; another program may be using it.",
};

const INSECURE = "Browsers only allow the microphone on pages at localhost or over https. Serve " +
  "with --tls-cert and --tls-key, or open a recording instead.";

export class Microphone {
  // onAudio(pcm: ArrayBuffer, peak: 0..1) gets the audio; onLost() is called when the device is lost.
  static async open(onAudio, onLost) {
    if (!navigator.mediaDevices || !window.AudioWorkletNode) throw new Error(INSECURE);
    const microphone = new Microphone();
    try {
      await microphone.begin(onAudio, onLost);
    } catch (error) {
      await microphone.close();
      throw new Error(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}`);
    }
    return microphone;
  }

  async begin(onAudio, onLost) {
    this.media = await navigator.mediaDevices.getUserMedia({
      audio: {
        channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false,
      },
    });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
    this.node = new AudioWorkletNode(this.context, "recorder", { numberOfOutputs: 0 });
    this.ended = new Promise((resolve) => {
      this.node.port.onmessage = ({ data }) => {
        if (data.ended) resolve();
        else onAudio(data.pcm, data.peak);
      };
    });
    this.media.getAudioTracks()[0].addEventListener("ended", onLost);
    this.source = this.context.createMediaStreamSource(this.media);
    this.sampleRate = this.context.sampleRate;
  }

  start() {
    this.source.connect(this.node);
    return this.context.resume();
  }

  // Delivers the remaining audio, and releases the microphone.
  async close() {
    if (this.node && this.context.state === "running") {
      this.node.port.postMessage("end");
      await Promise.race([this.ended, new Promise((resolve) => setTimeout(resolve, 500))]);
    }
    this.media?.getTracks().forEach((track) => track.stop());
    if (this.context && this.context.state !== "closed") await this.context.close();
  }
}

// Makes a WAV file from pieces of 16-bit mono PCM.
export function wavFile(pieces, sampleRate) {
  const size = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  const head = new DataView(new ArrayBuffer(44));
  const text = (place, value) => [...value].forEach((one, i) => head.setUint8(place + i, one.charCodeAt(0)));
  text(0, "RIFF");
  head.setUint32(4, 36 + size, true);
  text(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);
  head.setUint16(22, 1, true);
  head.setUint32(24, sampleRate, true);
  head.setUint32(28, 2 * sampleRate, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  text(36, "data");
  head.setUint32(40, size, true);
  return new Blob([head, ...pieces], { type: "audio/wav" });
}
