// The page: a model, then a recording or the microphone; text as it comes.

import { Recognizer } from "./recognizer.js";

const element = (id) => document.getElementById(id);
const [model, audio, microphone, state, text] = ["model", "audio", "microphone", "state", "text"].map(element);
const WORKLET = `registerProcessor("tap", class extends AudioWorkletProcessor {
  process([[samples]]) { if (samples) this.port.postMessage(samples.slice()); return true; }
});`;

let recognizer, live;
model.disabled = false;

model.onchange = () => show(async () => {
  state.textContent = "Loading the model ...";
  recognizer = await Recognizer.open(await model.files[0].arrayBuffer());
  audio.disabled = microphone.disabled = false;
  state.textContent = `Ready: ${recognizer.sampleRate} Hz, blocks of ${(1000 * recognizer.block) / recognizer.sampleRate} ms.`;
});

audio.onchange = () => show(async () => {
  state.textContent = "Recognising ...";
  const context = new OfflineAudioContext(1, 1, recognizer.sampleRate); // it resamples
  const decoded = await context.decodeAudioData(await audio.files[0].arrayBuffer());
  const samples = decoded.getChannelData(0);
  const stream = recognizer.stream();
  for (let start = 0; start < samples.length; start += 4000) {
    text.textContent = await stream.accept(samples.subarray(start, start + 4000));
  }
  text.textContent = await stream.finish();
  state.textContent = `Done: ${decoded.duration.toFixed(1)} s of audio.`;
});

microphone.onclick = () => show(live ? stop : start);

async function start() {
  const source = await navigator.mediaDevices.getUserMedia({ audio: true });
  const context = new AudioContext({ sampleRate: recognizer.sampleRate });
  await context.audioWorklet.addModule(URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" })));
  const tap = new AudioWorkletNode(context, "tap");
  const stream = recognizer.stream();
  let work = Promise.resolve(); // pieces one after the other
  tap.port.onmessage = ({ data }) => {
    work = work.then(async () => { text.textContent = await stream.accept(data); });
  };
  context.createMediaStreamSource(source).connect(tap);
  live = { source, context, stream, tap, settled: () => work };
  microphone.textContent = "Stop the microphone";
  state.textContent = "Listening ...";
}

async function stop() {
  const { source, context, stream, tap, settled } = live;
  live = undefined;
  tap.port.onmessage = null;
  source.getTracks().forEach((track) => track.stop());
  await context.close();
  await settled();
  text.textContent = await stream.finish();
  microphone.textContent = "Start the microphone";
  state.textContent = "Done.";
}

async function show(work) {
  try {
    await work();
  } catch (error) {
    state.textContent = error.message;
  }
}
