// The page's controls.

import { checkReady, listModels, setKey, transcribe } from "./api.js";
import { CollectedSession, LiveSession } from "./live.js";
import { addLine, addSource, clear, clock, say, showState, text } from "./view.js";

const CHECK_MS = 10000;
const $ = (id) => document.getElementById(id);

let models = [];
let busy = ""; // "", "starting", "speaking", "finishing" or "uploading"
let session = null;
let upload = null;
let ticking = 0;
let told = false; // that the server cannot be used

const chosen = () => models.find((model) => model.id === $("model").value);
const hotWords = () => $("hot-words").disabled ? [] :
  $("hot-words").value.split(",").map((word) => word.trim()).filter(Boolean);

function setBusy(state) {
  busy = state;
  const ready = models.length > 0;
  const texts = { starting: "Starting", speaking: "Stop", finishing: "Finishing" };
  $("record-text").textContent = texts[state] ?? "Start speaking";
  $("record").classList.toggle("on", state === "speaking");
  setUsable($("record"), ready, ["", "speaking"].includes(state));
  $("choose").textContent = state === "uploading" ? "Cancel" : "Open a recording";
  setUsable($("choose"), ready, ["", "uploading"].includes(state));
  $("model").disabled = !ready || state !== "";
  $("listening").hidden = state !== "speaking";
  clearInterval(ticking);
  if (state === "speaking" || state === "uploading") startClock(state);
  else if (ready) showState("good", "Ready");
}

// A waiting button is not disabled, because it would lose the focus.
function setUsable(button, ready, now) {
  button.disabled = !ready;
  button.setAttribute("aria-disabled", String(!now));
}

function startClock(state) {
  const began = Date.now();
  const words = state === "speaking" ? "Listening" : "Recognising";
  showState("busy", words);
  const tick = () => { $("clock").textContent = clock((Date.now() - began) / 1000, 0); };
  tick();
  ticking = setInterval(tick, 500);
}

function setLevel(peak) {
  const decibels = 20 * Math.log10(Math.max(peak, 1e-4));
  $("level").style.width = `${Math.max(0, Math.min(100, 100 + (decibels / 60) * 100))}%`;
}

// Shows an error, or asks for the key if it is missing.
function fail(error) {
  if (error.status === 401) {
    models = [];
    showState("bad", "Key needed");
    say($("key").value ? "The server did not accept this key." : "");
    $("key-form").hidden = false;
    $("key").focus();
  } else {
    say(error.message);
  }
}

async function connect() {
  const first = !told;
  try {
    await checkReady();
    models = await listModels();
  } catch (error) {
    models = [];
    told = true;
    showState("bad", error.status === 503 ? "Not ready" : "No connection");
    setBusy("");
    if (first || error.status === 401) fail(error);
    return;
  }
  if (told) say("");
  told = false;
  $("key-form").hidden = true;
  const before = $("model").value;
  $("model").replaceChildren(...models.map(({ id }) => new Option(id)));
  if (models.some(({ id }) => id === before)) $("model").value = before;
  fitModel();
  setBusy("");
}

function fitModel() {
  const model = chosen();
  const takes = model?.hot_words !== false;
  $("hot-words").disabled = !takes;
  $("hot-words-note").hidden = takes;
}

async function speak() {
  say("");
  setBusy("starting");
  const model = chosen();
  session = model.streaming === false ? collected(model) : live(model);
  try {
    await session.start();
  } catch (error) {
    session = null;
    setBusy("");
    // A browser does not report why a WebSocket was refused: find out with a request.
    const refused = "status" in error;
    const reason = refused ? await checkReady().then(listModels).then(() => error, (found) => found) : error;
    fail(reason);
    return;
  }
  addSource(`Microphone, ${new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}`);
  setBusy("speaking");
}

function live(model) {
  return new LiveSession(model.id, hotWords(), {
    level: setLevel,
    late: (is) => showState("busy", is ? "Listening, the server is behind" : "Listening"),
    end: (error) => {
      session = null;
      setBusy("");
      if (error) {
        fail(error);
        checkReady().catch(() => {
          told = true;
          connect();
        });
      }
    },
  });
}

function collected(model) {
  return new CollectedSession({
    level: setLevel,
    end: (_, file) => {
      session = null;
      recognise(file, "speech.wav", model, false);
    },
  });
}

function stop() {
  if (busy === "speaking") {
    setBusy("finishing");
    session.stop();
  } else if (busy === "uploading") {
    upload.abort();
  }
}

async function recognise(file, name, model = chosen(), announce = true) {
  say("");
  setBusy("uploading");
  upload = new AbortController();
  try {
    const found = await transcribe(file, name, model.id, hotWords(), upload.signal);
    if (announce) addSource(`${name}, ${clock(found.duration)}`);
    addSegments(found);
    if (!found.text) say("No words were recognised in the recording.");
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  } finally {
    upload = null;
    setBusy("");
  }
}

// Assigns the words to the segments, which are in the same order.
function addSegments({ segments, words }) {
  let next = 0;
  for (const segment of segments) {
    const count = segment.text.split(" ").length;
    addLine(words.slice(next, next + count));
    next += count;
  }
}

function dropped(event) {
  event.preventDefault();
  const file = event.dataTransfer?.files[0];
  if (file && busy === "" && models.length) recognise(file, file.name);
}

$("record").addEventListener("click", () => {
  if (busy === "speaking") stop();
  else if (busy === "") speak();
});
$("choose").addEventListener("click", () => {
  if (busy === "uploading") stop();
  else if (busy === "") $("file").click();
});
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) recognise(file, file.name);
  $("file").value = "";
});
$("model").addEventListener("change", fitModel);
$("hot-words").addEventListener("change", () => session?.setHotWords(hotWords()));
$("details").addEventListener("change", () =>
  document.body.classList.toggle("detailed", $("details").checked));
$("clear").addEventListener("click", clear);
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(text());
    $("copy").textContent = "Copied";
    setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
  } catch {
    say("The browser did not allow copying; select the text instead.");
  }
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    setKey($("key").value);
  } catch (error) {
    say(error.message);
    return;
  }
  connect();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", dropped);
setInterval(() => {
  if (!models.length && $("key-form").hidden && !document.hidden) connect();
}, CHECK_MS);
connect();
