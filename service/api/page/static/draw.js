// Drawing on the picture. All coordinates are pixels of the upright picture; `unit` is how many of
// them a pixel of the screen takes, so that lines and letters look alike on every picture.

import { css, textOn } from "./colours.js";

export function drawBoxes(context, boxes, picked, unit) {
  for (const one of [...boxes].reverse()) {
    const dim = picked && picked !== one;
    const { xmin, ymin, xmax, ymax } = one.box;
    context.globalAlpha = dim ? 0.35 : 1;
    context.lineWidth = (picked === one ? 3.5 : 2.25) * unit;
    context.strokeStyle = css(one.colour);
    context.beginPath();
    context.roundRect(xmin, ymin, xmax - xmin, ymax - ymin, 4 * unit);
    context.stroke();
    context.fillStyle = css(one.colour, 0.1);
    context.fill();
    context.globalAlpha = 1;
  }
  for (const one of [...boxes].reverse()) {
    if (!picked || picked === one) label(context, one, one.box.xmin, one.box.ymin, unit);
  }
}

/** A tag whose lower left corner is at x, y, or whose middle is there if `centred`. */
export function label(context, { label: name, score, colour }, x, y, unit, centred = false) {
  const text = score === null || score === undefined ? name : `${name} ${score.toFixed(2)}`;
  context.font = `600 ${12 * unit}px system-ui, sans-serif`;
  const width = context.measureText(text).width + 12 * unit;
  const height = 20 * unit;
  const { width: most } = logicalSize(context);
  const left = Math.max(0, Math.min(centred ? x - width / 2 : x - unit, most - width));
  const above = y - height - 2 * unit;
  const top = centred ? y - height / 2 : above < 0 ? y + 3 * unit : above;
  context.fillStyle = css(colour);
  context.beginPath();
  context.roundRect(left, top, width, height, 5 * unit);
  context.fill();
  context.fillStyle = textOn(colour);
  context.textBaseline = "middle";
  context.fillText(text, left + 6 * unit, top + height / 2 + unit * 0.5);
}

export function drawHeat(context, canvas, region, smooth) {
  context.save();
  context.imageSmoothingEnabled = smooth;
  context.imageSmoothingQuality = "high";
  context.beginPath();
  context.rect(region.xmin, region.ymin, region.xmax - region.xmin, region.ymax - region.ymin);
  context.clip();
  context.drawImage(canvas, region.xmin, region.ymin, region.xmax - region.xmin, region.ymax - region.ymin);
  context.restore();
}

export function drawOutline(context, { xmin, ymin, xmax, ymax }, unit) {
  for (const [width, style] of [[4, "rgb(0 0 0 / 0.55)"], [2, "#fff"]]) {
    context.lineWidth = width * unit;
    context.strokeStyle = style;
    context.beginPath();
    context.roundRect(xmin, ymin, xmax - xmin, ymax - ymin, 4 * unit);
    context.stroke();
  }
}

export function drawPoint(context, [x, y], unit) {
  for (const [width, style] of [[5, "rgb(0 0 0 / 0.6)"], [2.5, "#fff"]]) {
    context.lineWidth = width * unit;
    context.strokeStyle = style;
    context.beginPath();
    context.arc(x, y, 8 * unit, 0, 2 * Math.PI);
    context.stroke();
  }
}

function logicalSize(context) {
  const { a } = context.getTransform();
  return { width: context.canvas.width / a };
}
