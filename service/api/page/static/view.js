// The picture of a pane: what is drawn over it, and where a pointer or the keys are on it.

import * as attention from "./attention.js";
import { drawBoxes, drawHeat, drawOutline, drawPoint, label } from "./draw.js";
import { segmentAt, tint } from "./masks.js";

const TALLEST = 0.66; // of the window, so that the picture and what is said of it are seen together
const LARGEST_SCALE = 3;
const SAVED_PX = 1600;

export class View {
  /** `pane` says what to show; a place is told to its `press`, what lies there to its `pick`. */
  constructor(pane) {
    this.pane = pane;
    this.canvas = pane.$(".view");
    this.cursor = null;
    this.#listen();
    this.sizes = new ResizeObserver(() => this.paint());
    this.sizes.observe(pane.$(".stage"));
  }

  leave() {
    this.sizes.disconnect();
  }

  paint() {
    const { bitmap } = this.pane.picture ?? {};
    if (!bitmap) return;
    const { canvas } = this;
    const room = this.pane.$(".stage").clientWidth;
    const scale = Math.min(room / bitmap.width, (innerHeight * TALLEST) / bitmap.height, LARGEST_SCALE);
    const density = scale * (devicePixelRatio || 1);
    canvas.style.width = `${Math.round(bitmap.width * scale)}px`;
    canvas.style.height = `${Math.round(bitmap.height * scale)}px`;
    canvas.width = Math.round(bitmap.width * density);
    canvas.height = Math.round(bitmap.height * density);
    this.#draw(canvas.getContext("2d"), density, 1 / scale);
    if (this.cursor) drawPoint(canvas.getContext("2d"), this.cursor, 1 / scale);
  }

  /** The picture as it is shown, in a size to keep. */
  toPng() {
    const { width, height } = this.pane.picture.bitmap;
    const scale = Math.max(1, Math.min(LARGEST_SCALE, SAVED_PX / Math.max(width, height)));
    const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
    this.#draw(canvas.getContext("2d"), scale, Math.max(width, height) / 800);
    return canvas.convertToBlob({ type: "image/png" });
  }

  /** What is seen at a place, in pixels of the picture: the smallest box, or the segment. */
  hit(x, y) {
    const { picture, masks, visible } = this.pane;
    const { width, height } = picture.bitmap;
    if (masks) return segmentAt(masks, Math.min(x / width, 0.9999), Math.min(y / height, 0.9999), visible);
    const inside = visible.filter(({ box }) => box && x >= box.xmin && x <= box.xmax && y >= box.ymin && y <= box.ymax);
    const area = ({ box }) => (box.xmax - box.xmin) * (box.ymax - box.ymin);
    return inside.sort((one, other) => area(one) - area(other))[0] ?? null;
  }

  #draw(context, density, unit) {
    const { picture, look, masks, task, visible, picked } = this.pane;
    const { bitmap } = picture;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0);
    if (look) this.#drawLook(context, look, unit);
    else if (masks) {
      context.drawImage(tint(masks, visible, picked), 0, 0, bitmap.width, bitmap.height);
      for (const one of picked ? [picked] : visible) {
        label(context, one, one.anchor[0] * bitmap.width, one.anchor[1] * bitmap.height, unit, true);
      }
    } else if (task === "detect") drawBoxes(context, visible, picked, unit);
  }

  #drawLook(context, { reply, layers, heads, question }, unit) {
    const map = attention.combine(reply.answer, layers, heads);
    if (map) drawHeat(context, attention.heat(map), map.region, this.pane.$(".smooth").checked);
    const { explained } = reply.answer;
    const box = explained?.box ?? question.box;
    if (box) drawOutline(context, box, unit);
    if (explained?.point ?? (question.point && reply.answer.maps[0].query !== "class")) {
      drawPoint(context, explained?.point ? [explained.point.x, explained.point.y] : question.point, unit);
    }
  }

  #listen() {
    const { canvas, pane } = this;
    canvas.addEventListener("click", (event) => {
      this.cursor = null;
      pane.press(...this.#placeOf(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" && pane.reply) pane.pick(this.hit(...this.#placeOf(event)));
    });
    canvas.addEventListener("pointerleave", () => pane.pick(null));
    canvas.addEventListener("blur", () => {
      this.cursor = null;
      this.paint();
    });
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  #placeOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const { width, height } = this.pane.picture.bitmap;
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  }

  #key(event) {
    const { pane } = this;
    const { width, height } = pane.picture.bitmap;
    const step = Math.max(width, height) / (event.shiftKey ? 100 : 25);
    const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (right || down) {
      const [x, y] = this.cursor ?? [width / 2, height / 2];
      this.cursor = [clamp(x + right * step, width), clamp(y + down * step, height)];
      const item = pane.look ? null : this.hit(...this.cursor);
      pane.picked = item;
      this.paint();
      const place = this.cursor.map(Math.round).join(", ");
      pane.host.speak(item ? `${item.label} at ${place}` : place);
    } else if (event.key === "Enter" || event.key === " ") {
      pane.press(...(this.cursor ?? [width / 2, height / 2]));
    } else if (event.key === "Escape" && pane.look && pane.task !== "attention") {
      pane.back();
    } else return;
    event.preventDefault();
  }
}

function clamp(value, most) {
  return Math.min(Math.max(value, 0), most - 0.01);
}
