// The colours of classes, as the server's own overlays have them, and of attention.

const GOLDEN_ANGLE_DEG = 360 * (1 - 1 / ((1 + Math.sqrt(5)) / 2));
const TONES = [[0.72, 0.17], [0.6, 0.19], [0.83, 0.13]];
const SHADES = [0, 0.24, -0.2, 0.42, -0.36];
const RAMP = [ // dark to bright in even steps of lightness
  [0.22, 0.1, 280], [0.36, 0.16, 300], [0.5, 0.19, 345], [0.64, 0.18, 30], [0.78, 0.16, 65], [0.93, 0.12, 100],
];

const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const known = new Map();

/** Any CSS colour as [red, green, blue]. */
function rgb(css) {
  if (!known.has(css)) {
    pixel.fillStyle = css;
    pixel.fillRect(0, 0, 1, 1);
    known.set(css, [...pixel.getImageData(0, 0, 1, 1).data.slice(0, 3)]);
  }
  return known.get(css);
}

export function colourOf(id, own) {
  if (own) return own;
  const [lightness, chroma] = TONES[id % TONES.length];
  return rgb(`oklch(${lightness} ${chroma} ${(id * GOLDEN_ANGLE_DEG + 25.8) % 360})`);
}

/** The n-th object of a class: its class's colour, then lighter and darker ones in turn. */
export function shade(colour, number) {
  const share = SHADES[number % SHADES.length];
  const target = share > 0 ? 255 : 0;
  return colour.map((part) => Math.round(part + (target - part) * Math.abs(share)));
}

export function css(colour, alpha = 1) {
  return `rgb(${colour.join(" ")} / ${alpha})`;
}

/** Black or white, whichever stands out more. */
export function textOn(colour) {
  const [red, green, blue] = colour.map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  return (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) ? "#000" : "#fff";
}

/** 256 colours with rising opacity, so that what got no attention shows through darkened. */
export const ramp = Array.from({ length: 256 }, (_, step) => {
  const at = (step / 255) * (RAMP.length - 1);
  const low = Math.min(Math.floor(at), RAMP.length - 2);
  const colours = [RAMP[low], RAMP[low + 1]].map(([l, c, h]) => rgb(`oklch(${l} ${c} ${h})`));
  const mixed = colours[0].map((part, i) => Math.round(part + (colours[1][i] - part) * (at - low)));
  return [...mixed, Math.round(255 * (0.5 + 0.36 * (step / 255)))];
});
