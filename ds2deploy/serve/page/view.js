// Display of transcripts.

const $ = (id) => document.getElementById(id);

// Formats a time as 0:07.1, or as 1:02:07 from an hour on.
export function clock(seconds, digits = 1) {
  const whole = Math.floor(seconds / 60);
  const rest = (seconds - 60 * whole).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  if (whole < 60) return `${whole}:${rest}`;
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}:${rest.slice(0, 2)}`;
}

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Shows words separated by spaces, each with its confidence and its time.
function wordNodes(words) {
  return words.flatMap((word) => {
    const sure = word.confidence ?? 1;
    const percent = `${Math.floor(100 * sure)} %`;
    const node = element("span", "word", word.word);
    node.dataset.sure = sure < 0.6 ? "low" : sure < 0.9 ? "fair" : "high";
    node.title = `${clock(word.start, 2)} to ${clock(word.end, 2)}, ${percent} certain`;
    const whole = element("span", "cell");
    whole.append(node, element("small", "detail", `${clock(word.start, 2)} · ${percent}`));
    return [whole, " "];
  });
}

// Starts the lines of another source: a recording or the microphone.
export function addSource(name) {
  $("lines").append(element("p", "source", name));
  refresh();
}

export function addLine(words) {
  if (!words.length) return;
  const line = element("div", "line");
  const text = element("p", "text");
  text.append(...wordNodes(words));
  const time = element("span", "time", clock(words[0].start));
  time.title = `${clock(words[0].start)} to ${clock(words[words.length - 1].end)}`;
  line.append(time, text);
  $("lines").append(line);
  refresh();
  line.scrollIntoView({ block: "nearest" });
}

// Shows the current line: final words, and the tail that may still change.
export function showLive(words, tail, listening = true) {
  const live = $("live");
  live.hidden = !listening;
  live.replaceChildren(...wordNodes(words));
  if (tail) live.append(element("span", "tail", tail));
  else if (!words.length) live.append(element("span", "tail waiting", "…"));
  refresh();
  live.scrollIntoView({ block: "nearest" });
}

export function text() {
  return [...$("lines").querySelectorAll(".line")]
    .map((line) => [...line.querySelectorAll(".word")].map((word) => word.textContent).join(" "))
    .join("\n");
}

export function clear() {
  $("lines").replaceChildren();
  refresh();
}

function refresh() {
  const any = $("lines").childElementCount > 0;
  $("copy").disabled = $("clear").disabled = !any;
  $("lines").tabIndex = any ? 0 : -1;
  $("empty").hidden = any || !$("live").hidden;
}

// Shows a message; an empty one hides it.
export function say(message) {
  $("message").textContent = message;
  $("message").hidden = !message;
}

export function showState(state, words) {
  $("state").dataset.state = state;
  if ($("state").textContent !== words) $("state").textContent = words;
}
