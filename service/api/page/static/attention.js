// Attention: what to ask of a model's explain graph, and its maps put together and coloured.

import { ramp } from "./colours.js";

const NAMES = { raw: "attention", cam: "class map", pooled: "mean attention", mask: "masks" };

/** Whether a kind of map can be asked about a place of the picture. */
export function asksPoints(kind) {
  return kind.query === "token" || kind.query === "place";
}

export function nameOf(kind) {
  return NAMES[kind.name] ?? kind.name;
}

export function kindFor(explain, question) {
  const kinds = explain?.kinds ?? [];
  if (question.query !== undefined) return kinds.find((kind) => kind.query === question.kind) ?? null;
  if (question.point) return kinds.find(asksPoints) ?? null;
  return kinds[0] ?? null;
}

/** Parameters of a request for every layer and head of a kind, so that toggling them asks no more. */
export function parametersFor(model, kind, question) {
  const headless = kind.layers.every((layer) => layer.heads === 0);
  const parameters = { model, kind: kind.name };
  if (!(headless && kind.layers.length === 1)) parameters.layer = "all";
  if (!headless) parameters.head = "all";
  if (question.point && asksPoints(kind)) {
    parameters.point = question.point.map((value) => Math.round(value * 10) / 10).join(",");
  } else if (question.query !== undefined && question.kind === kind.query) {
    parameters.query = String(question.query);
  }
  return parameters;
}

/** The parameters for those layers and heads alone that are shown, where it is one of them or all. */
export function narrowed(parameters, { layers, heads }) {
  const found = { ...parameters };
  if (found.layer && layers.size === 1) [found.layer] = layers;
  if (found.head && heads.size === 1) [found.head] = heads;
  return found;
}

/** The mean of the chosen maps on the finest of their grids, with the region that it covers. */
export function combine(answer, layers, heads) {
  const chosen = answer.maps.filter(
    (map) => (map.layer === null || layers.has(map.layer)) && (map.head === null || map.head === "mean" || heads.has(map.head)),
  );
  if (chosen.length === 0) return null;
  const finest = chosen.reduce((best, map) => (map.grid[1] > best.grid[1] ? map : best));
  const [rows, columns] = finest.grid;
  const values = new Float64Array(rows * columns);
  for (const map of chosen) {
    const sum = map.values.flat().reduce((total, value) => total + Math.max(value, 0), 0) || 1;
    for (let y = 0, at = 0; y < rows; y++) {
      const row = map.values[Math.floor((y * map.grid[0]) / rows)];
      for (let x = 0; x < columns; x++, at++) values[at] += Math.max(row[Math.floor((x * map.grid[1]) / columns)], 0) / sum;
    }
  }
  return { rows, columns, values, region: finest.region ?? answer.transform.region };
}

/** The map as a canvas of one pixel a cell; the brightest is the greatest value. */
export function heat({ rows, columns, values }) {
  const canvas = new OffscreenCanvas(columns, rows);
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const most = Math.max(...values) || 1;
  values.forEach((value, at) => image.data.set(ramp[Math.round(255 * Math.sqrt(value / most))], at * 4));
  context.putImageData(image, 0, 0);
  return canvas;
}

export function describe(answer) {
  const { explained } = answer;
  if (explained?.point) return `From the point ${Math.round(explained.point.x)}, ${Math.round(explained.point.y)}.`;
  if (explained?.label) return `For ${explained.label}, which has a score of ${explained.score.toFixed(2)}.`;
  const query = answer.maps[0]?.query;
  if (query === "class") return "From the class token. Click the picture to ask about a place.";
  return query === "all" ? "All tokens in the mean." : "";
}
