// Masks of an answer as layers that can be shown, hidden and hit: for each pixel the segments there.

import { colourOf, shade } from "./colours.js";

const MOST_PX = 1200; // a side of what is drawn; finer edges cannot be seen

/** Segments with masks on a common grid of width x height, from the map of ids or run lengths. */
export async function readMasks(answer, labels) {
  const { width, height } = answer.image;
  const scale = Math.min(1, MOST_PX / Math.max(width, height));
  const size = { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
  const ids = answer.segment_map ? await readIds(answer.segment_map, size) : null;
  const seen = new Map();
  const segments = answer.segments.map((segment) => {
    const number = seen.get(segment.label_id) ?? 0;
    seen.set(segment.label_id, number + 1);
    const own = labels.find((label) => label.id === segment.label_id)?.color;
    const mask = ids ? null : readRuns(segment.mask, size);
    return { ...segment, mask, colour: shade(colourOf(segment.label_id, own), number) };
  });
  for (const segment of segments) segment.anchor = anchorOf({ ...size, ids }, segment);
  return { ...size, ids, segments };
}

/** The segment at a point given as shares of width and height, among those that are visible. */
export function segmentAt(masks, x, y, visible) {
  const at = Math.floor(y * masks.height) * masks.width + Math.floor(x * masks.width);
  const here = visible.filter((one) => (masks.ids ? masks.ids[at] === one.id : one.mask[at]));
  return here.sort((one, other) => one.area - other.area)[0] ?? null;
}

/** A canvas with the visible segments tinted and outlined; one may be picked out. */
export function tint(masks, visible, picked) {
  const { width, height } = masks;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const owner = masks.ids ?? ownersOf(masks, visible);
  const styles = new Map(
    visible.map((one) => [one.id, [...one.colour, !picked || picked.id === one.id ? 128 : 40]]),
  );
  const edge = Math.max(1, Math.round(Math.max(width, height) / 400));
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const style = styles.get(owner[at]);
      if (!style) continue;
      const border =
        (x >= edge && owner[at - edge] !== owner[at]) || (y >= edge && owner[at - edge * width] !== owner[at]) ||
        (x < width - edge && owner[at + edge] !== owner[at]) || (y < height - edge && owner[at + edge * width] !== owner[at]);
      image.data.set(border ? [style[0], style[1], style[2], style[3] > 100 ? 240 : 90] : style, at * 4);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Where a tag sits well inside a segment, as shares of width and height: in the middle of the
    widest stretch of a row that is also high.
 */
function anchorOf({ width, height, ids }, { id, mask }) {
  const inside = ids ? (at) => ids[at] === id : (at) => mask[at] === 1;
  let best = { room: -1, anchor: [0.5, 0.5] };
  const step = Math.max(1, Math.round(height / 200));
  for (let y = 0; y < height; y += step) {
    for (let x = 0; x < width; x++) {
      if (!inside(y * width + x)) continue;
      const from = x;
      while (x < width && inside(y * width + x)) x++;
      if (x - from <= best.room) continue;
      const middle = Math.floor((from + x - 1) / 2);
      let [top, bottom] = [y, y];
      while (top > 0 && inside((top - 1) * width + middle)) top--;
      while (bottom < height - 1 && inside((bottom + 1) * width + middle)) bottom++;
      const room = Math.min(x - from, (bottom - top + 1) * 2);
      if (room > best.room) best = { room, anchor: [middle / width, (top + bottom) / 2 / height] };
    }
  }
  return best.anchor;
}

/** COCO's panoptic coding: id = R + 256 G + 65536 B. */
async function readIds(base64, { width, height }) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const options = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), options);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false; // ids must not be mixed
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  return Uint32Array.from({ length: width * height }, (_, i) => data[4 * i] + 256 * data[4 * i + 1] + 65536 * data[4 * i + 2]);
}

/** COCO's compressed run lengths, which go down the columns, sampled onto the grid. */
function readRuns({ counts, size: [rows, columns] }, { width, height }) {
  const full = new Uint8Array(rows * columns);
  const runs = [];
  for (let at = 0, inside = 0, from = 0; at < counts.length; inside ^= 1) {
    let run = 0;
    for (let shift = 0, more = true; more; shift += 5, at++) {
      const code = counts.charCodeAt(at) - 48;
      run |= (code & 31) << shift;
      more = (code & 32) !== 0;
      if (!more && code & 16) run |= -1 << (shift + 5);
    }
    if (runs.length > 2) run += runs[runs.length - 2];
    runs.push(run);
    if (inside) full.fill(1, from, from + run);
    from += run;
  }
  const mask = new Uint8Array(width * height);
  for (let y = 0, to = 0; y < height; y++) {
    const row = Math.floor((y * rows) / height);
    for (let x = 0; x < width; x++, to++) mask[to] = full[Math.floor((x * columns) / width) * rows + row];
  }
  return mask;
}

/** The topmost segment of each pixel where they may overlap: the best on top. */
function ownersOf(masks, visible) {
  const owner = new Uint32Array(masks.width * masks.height);
  for (const one of [...visible].reverse()) {
    for (let at = 0; at < owner.length; at++) if (one.mask[at]) owner[at] = one.id;
  }
  return owner;
}
