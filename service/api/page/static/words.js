// What a pane says of its answer: how much there is, what to click next, and why a click asks nothing.

import * as attention from "./attention.js";

const SEMANTIC = "A semantic map has classes, not objects: choose panoptic to ask what the model looked at.";
const NOUNS = { detect: ["object", "objects"], segment: ["segment", "segments"], classify: ["class", "classes"] };

export function count(pane) {
  const { embedding } = pane.reply?.answer ?? {};
  if (embedding) return `${embedding.length} numbers`;
  const many = pane.visible.length;
  const [one, several] = NOUNS[pane.task] ?? ["", ""];
  return `${many} ${many === 1 ? one : several}`;
}

export function hint(pane) {
  if (!pane.picture?.bitmap || !(pane.reply || pane.look)) return "";
  const points = pane.kinds.some(attention.asksPoints);
  const objects = !pane.look && pane.items.some((item) => pane.questionOf(item));
  if (objects && pane.task !== "classify") {
    return `Click an object to see what the model looked at${points ? ", or a place beside them" : ""}.`;
  }
  if (pane.mode === "semantic") return SEMANTIC;
  if (points) return "Click a place to see what the model relates it to.";
  if (pane.task === "attention") return "This is the best object. Choose the model's other task to click the rest.";
  return "";
}

export function whyNot(pane) {
  if (pane.kinds.length === 0) return "This model's bundle has no attention maps.";
  if (pane.mode === "semantic") return SEMANTIC;
  return "This model tells what it looked at for each object: click one.";
}

/** For people who do not see the picture. */
export function summary(pane) {
  if (pane.look) return `Attention of ${pane.model}. ${attention.describe(pane.look.reply.answer)}`;
  if (!pane.reply) return "The picture";
  const names = pane.visible.slice(0, 5).map((one) => (one.score ? `${one.label} ${one.score.toFixed(2)}` : one.label));
  return [count(pane), names.join(", ")].filter(Boolean).join(": ");
}
