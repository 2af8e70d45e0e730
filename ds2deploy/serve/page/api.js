// Sends requests to the server, and turns its errors into sentences.

const STORED = "ds2deploy-key";

export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  if (!/^[\x21-\x7e]+$/.test(key)) {
    throw new ServerError("A key may only contain ASCII letters, digits and punctuation, and no spaces.");
  }
  sessionStorage.setItem(STORED, key);
}

function key() {
  return sessionStorage.getItem(STORED) ?? "";
}

async function request(path, options = {}) {
  const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it running?");
  }
  if (response.ok) return response.json();
  const body = await response.json().catch(() => ({}));
  const reason = body.error?.message ?? body.reason ?? `error ${response.status}`;
  throw new ServerError(sentence(reason), response.status);
}

export function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.?!]$/.test(whole) ? whole : `${whole}.`;
}

export async function listModels() {
  return (await request("v1/models")).data;
}

// Throws a ServerError if the server is not ready.
export async function checkReady() {
  await request("ready");
}

export function transcribe(file, name, model, hotWords, signal) {
  const form = new FormData();
  form.append("file", file, name);
  form.append("model", model);
  form.append("response_format", "verbose_json");
  form.append("timestamp_granularities[]", "word");
  form.append("timestamp_granularities[]", "segment");
  for (const word of hotWords) form.append("keywords[]", word);
  return request("v1/audio/transcriptions", { method: "POST", body: form, signal });
}

// Opens a WebSocket; a browser can send a key only as a subprotocol.
export function openStream() {
  const address = new URL("stream", location.href);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  const protocols = key() ? ["ds2deploy", `ds2deploy-key.${encodeURIComponent(key())}`] : [];
  const socket = new WebSocket(address, protocols);
  socket.binaryType = "arraybuffer";
  return socket;
}
