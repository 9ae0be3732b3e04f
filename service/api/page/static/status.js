// The strip that shows whether the server runs, what waits, and how large its batches are.

import { getJson } from "./api.js";

const EVERY_MS = 2000;
const KEPT = 36;

export function watch() {
  const history = [];
  let before = null;

  async function look() {
    if (document.hidden) return;
    try {
      const now = { ...(await getJson("/page/status")), at: performance.now() };
      document.getElementById("status").hidden = false;
      tell(now.ready ? "ready" : "not ready", now.ready ? "good" : "poor");
      const [batches, pictures] = between(before, now);
      const rate = before ? pictures / ((now.at - before.at) / 1000) : 0;
      set("queue", now.queue_depth);
      set("rate", rate < 10 ? rate.toFixed(1) : Math.round(rate));
      set("batch", batches ? (pictures / batches).toFixed(1) : "–");
      history.push({ depth: now.queue_depth, rate });
      draw(history.splice(0, Math.max(0, history.length - KEPT)) && history);
      before = now;
    } catch (error) {
      before = null;
      if (error.status === 404) return clearInterval(timer); // metrics are off, and so is this
      if (error.status !== 401) document.getElementById("status").hidden = false;
      tell("no answer", "bad");
    }
  }

  const timer = setInterval(look, EVERY_MS);
  look();
}

/** Batches and pictures since the last look; a count that fell belongs to a new server. */
function between(before, now) {
  if (!before) return [0, 0];
  return ["batches", "pictures"].map((what) =>
    Object.entries(now.models).reduce((sum, [name, counts]) => sum + Math.max(0, counts[what] - (before.models[name]?.[what] ?? 0)), 0),
  );
}

function draw(history) {
  const canvas = document.getElementById("spark");
  const context = canvas.getContext("2d");
  const { color } = getComputedStyle(canvas);
  const most = Math.max(4, ...history.flatMap(({ depth, rate }) => [depth, rate]));
  const wide = canvas.width / KEPT;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = color;
  const still = { depth: 0, rate: 0 };
  [...Array(KEPT - history.length).fill(still), ...history].forEach(({ depth, rate }, i) => {
    const x = i * wide;
    const bar = (value, alpha) => {
      const height = Math.max(1.5, (value / most) * (canvas.height - 2));
      context.globalAlpha = alpha;
      context.fillRect(x, canvas.height - height, wide - 1, height);
    };
    bar(rate, 0.35);
    if (depth > 0) bar(depth, 1);
  });
}

function tell(text, mood) {
  set("state", text);
  document.getElementById("dot").className = `dot ${mood}`;
}

function set(id, text) {
  document.getElementById(id).textContent = text;
}
