// The page: a recording or the microphone, and the text while it is recognised.

import { load } from "./recognizer.js";

const PIECE_S = 0.1;
const element = (id) => document.getElementById(id);
const url = new URLSearchParams(location.search).get("model") ?? "models/model.streaming.waveform.onnx";

function show(text, status) {
  element("text").textContent = text;
  element("status").textContent = status;
}

async function recogniseFile(recognizer, file) {
  // decodeAudioData converts any format that the browser knows to the rate of the context.
  const context = new OfflineAudioContext(1, 1, recognizer.sampleRate);
  const audio = await context.decodeAudioData(await file.arrayBuffer());
  const samples = audio.getChannelData(0);
  const stream = recognizer.stream();
  const piece = Math.round(PIECE_S * recognizer.sampleRate);
  const started = performance.now();
  for (let start = 0; start < samples.length; start += piece) {
    show(await stream.accept(samples.subarray(start, start + piece)), "Recognising");
  }
  const text = await stream.finish();
  const seconds = (performance.now() - started) / 1000;
  show(text, `Done: ${audio.duration.toFixed(2)} s of audio in ${seconds.toFixed(2)} s`);
}

async function openMicrophone(recognizer) {
  const media = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const context = new AudioContext({ sampleRate: recognizer.sampleRate });
  await context.audioWorklet.addModule("microphone.js");
  const node = new AudioWorkletNode(context, "microphone");
  const stream = recognizer.stream();
  node.port.onmessage = async ({ data }) => show(await stream.accept(data), "Listening");
  context.createMediaStreamSource(media).connect(node);
  return async () => {
    node.port.onmessage = null;
    media.getTracks().forEach((track) => track.stop());
    await context.close();
    show(await stream.finish(), "Done");
  };
}

/** Run an action, and show its error. */
function guard(action) {
  return async (event) => {
    try {
      await action(event);
    } catch (error) {
      element("status").textContent = error.message;
    }
  };
}

let stop = null;

await guard(async () => {
  const recognizer = await load(url);
  element("file").onchange = guard(async ({ target }) => {
    element("file").disabled = true;
    try {
      await recogniseFile(recognizer, target.files[0]);
    } finally {
      element("file").disabled = false;
    }
  });
  element("microphone").onclick = guard(async () => {
    const before = stop;
    stop = null;
    if (before) await before();
    else stop = await openMicrophone(recognizer);
    element("microphone").textContent = stop ? "Stop" : "Microphone";
  });
  element("file").disabled = element("microphone").disabled = false;
  show("", `Ready: ${url}, ${recognizer.sampleRate} Hz`);
})();
