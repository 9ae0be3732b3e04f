// Lists, bars and texts beside the picture.

import { css } from "./colours.js";

const WORDS = {
  wait: "wait", decode: "decode", preprocess: "resize", queue: "queue", infer: "model",
  postprocess: "post-process", encode: "encode", rest: "rest",
};
const LONGEST_JSON = 12_000;

export function showResults(list, items, { share, explains, press, pick }) {
  list.replaceChildren(
    ...items.map((item) => {
      const row = document.createElement("li");
      const body = document.createElement(explains(item) ? "button" : "div");
      body.className = "result";
      const swatch = part("i", "swatch", "");
      swatch.style.background = css(item.colour);
      const name = part("span", "name", item.label);
      const area = share(item);
      if (area !== null) name.append(part("small", "", ` ${area < 0.01 ? "<1" : Math.round(area * 100)} %`));
      const bar = part("span", "bar", "");
      const fill = part("i", "", "");
      fill.style.width = `${Math.round((item.score ?? 0) * 100)}%`;
      fill.style.background = css(item.colour);
      bar.append(fill);
      bar.hidden = item.score === null || item.score === undefined;
      body.append(swatch, name, bar, part("span", "score", bar.hidden ? "" : item.score.toFixed(3)));
      if (body.tagName === "BUTTON") {
        body.type = "button";
        body.title = "Show what the model looked at";
        body.addEventListener("click", () => press(item));
        body.addEventListener("focus", () => pick(item));
        body.addEventListener("blur", () => pick(null));
      }
      row.addEventListener("pointerenter", () => pick(item));
      row.addEventListener("pointerleave", () => pick(null));
      row.append(body);
      return row;
    }),
  );
}

/** Server-Timing as one bar; waits for a thread are told with the stage that they precede. */
export function showTiming(section, timing, tookMs) {
  const total = timing.find(([name]) => name === "total")?.[1] ?? tookMs;
  const stages = new Map();
  for (const [name, ms] of timing) {
    if (name === "total") continue;
    const stage = name.endsWith("-wait") ? "wait" : name;
    stages.set(stage, (stages.get(stage) ?? 0) + ms);
  }
  const known = [...stages.values()].reduce((sum, ms) => sum + ms, 0);
  if (total - known > 0.005 * total) stages.set("rest", total - known);
  section.querySelector(".total").textContent = `${milliseconds(total)} in the server, ${milliseconds(tookMs)} for this page`;
  section.querySelector(".stages").replaceChildren(
    ...[...stages].map(([name, ms]) => {
      const bar = part("i", `stage-${name}`, "");
      bar.style.flexGrow = String(ms);
      bar.title = `${WORDS[name] ?? name} ${milliseconds(ms)}`;
      return bar;
    }),
  );
  section.querySelector(".legend").replaceChildren(
    ...[...stages].filter(([, ms]) => ms >= 0.05).map(([name, ms]) => {
      const row = document.createElement("li");
      row.append(part("i", `stage-${name}`, ""), part("span", "", WORDS[name] ?? name), part("b", "", milliseconds(ms)));
      return row;
    }),
  );
}

/** A vector as stripes: above zero in one direction, below in the other. */
export function showVector(canvas, values) {
  canvas.width = values.length;
  const context = canvas.getContext("2d");
  const most = Math.max(...values.map(Math.abs)) || 1;
  context.fillStyle = getComputedStyle(canvas).color;
  values.forEach((value, x) => {
    const height = (Math.abs(value) / most) * (canvas.height / 2);
    context.fillRect(x, value > 0 ? canvas.height / 2 - height : canvas.height / 2, 1, height);
  });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `A vector of ${values.length} numbers`);
}

export function shorten(answer) {
  const short = (_, value) => {
    if (typeof value === "string" && value.length > 120) return `${value.slice(0, 60)}… (${value.length} characters)`;
    if (Array.isArray(value) && value.length > 8 && value.every((one) => typeof one === "number")) return `[${value.slice(0, 3).join(", ")}, … ${value.length} numbers]`;
    return value;
  };
  const text = JSON.stringify(answer, short, 1);
  return text.length > LONGEST_JSON ? `${text.slice(0, LONGEST_JSON)}\n… (Save JSON has all of it)` : text;
}

function milliseconds(ms) {
  return ms < 10 ? `${ms.toFixed(1)} ms` : ms < 2000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

function part(tag, className, text) {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}
