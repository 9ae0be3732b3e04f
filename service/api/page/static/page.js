// The page: where pictures come from, how many panes show them, keys and colours.

import { getBlob, getJson, key } from "./api.js";
import { Pane } from "./pane.js";
import { watch } from "./status.js";

const $ = (id) => document.getElementById(id);
const THEME = "saccade-theme";
const NO_CAMERA = {
  NotAllowedError: "The browser was not allowed to use the camera. Allow it in the address bar",
  NotFoundError: "No camera was found. Connect one",
  NotReadableError: "The camera is in use, or switched off. Close the program that uses it, and try again",
};

const panes = [];
let models = [];
let picture = null;
let taken = 0; // pictures so far: the last one counts, however long an earlier one takes to arrive
let beginning = null;
let sampling = null;

const host = {
  speak: (text) => ($("spoken").textContent = text),
  choosePicture: () => $("file").click(),
  askForKey: () => {
    $("key-field").value = key.get();
    $("key-dialog").showModal();
  },
};

/** Finds out what is served and shows a first pane; to be called again as long as there is none. */
function begin() {
  return (beginning ??= open().finally(() => (beginning = null)));
}

async function open() {
  try {
    models = (await getJson("/v1/models")).models;
  } catch (error) {
    if (error.status === 401) {
      $("api-link").hidden = true; // a link cannot show a key
      host.askForKey();
    }
    return complain(error.status === 401 ? "This server asks for a key. Enter one under “Key”, above." : error.message);
  }
  complain("");
  showSamples();
  if (models.length === 0) return complain("This server has no models. Put a bundle into its repository, and reload this page.");
  const first = ["detect", "segment", "classify"].find((task) => models.some((model) => model.tasks.includes(task)));
  addPane(first ?? models[0].tasks[0]);
  return null;
}

function addPane(task, name) {
  const pane = new Pane(models, host);
  panes.push(pane);
  $("panes").append(pane.root);
  $("panes").classList.toggle("two", panes.length > 1);
  pane.choose(task, name);
  if (picture) pane.setPicture(picture);
}

function compare() {
  const two = panes.length > 1;
  if (two) panes.pop().leave();
  else if (panes.length === 1) {
    const { task, model } = panes[0];
    const other = models.find((one) => one.name !== model && one.tasks.includes(task)) ?? models.find((one) => one.name !== model) ?? models[0];
    addPane(other.tasks.includes(task) ? task : other.tasks[0], other.name);
  }
  $("panes").classList.toggle("two", panes.length > 1);
  $("compare").setAttribute("aria-pressed", String(panes.length > 1));
  panes[0]?.view.paint();
}

/** Shows the picture that was chosen last, a blob or the promise of one; what the browser cannot read
    goes to the server too, which says what it is.
 */
async function take(given, name) {
  const mine = ++taken;
  const blob = await Promise.resolve(given).catch((error) => mine === taken && complain(error.message));
  if (!blob || mine !== taken) return;
  complain(blob.size === 0 ? `${name || "The picture"} is empty. Choose another picture.` : "");
  if (blob.size === 0) return;
  const bitmap = await createImageBitmap(blob).catch(() => null);
  if (mine !== taken) return bitmap?.close();
  const before = picture;
  picture = { blob, bitmap, name: name || "picture.jpg" };
  for (const button of $("samples").children) button.setAttribute("aria-pressed", String(button.dataset.name === name));
  for (const pane of panes) pane.setPicture(picture);
  before?.bitmap?.close();
  if (panes.length === 0) begin();
}

function showSamples() {
  sampling ??= loadSamples().catch((error) => {
    sampling = null;
    complain(error.message);
  });
}

async function loadSamples() {
  const { samples } = await getJson("/page/samples");
  $("samples").replaceChildren(
    ...samples.map((name) => {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "sample" });
      button.dataset.name = name;
      button.setAttribute("aria-pressed", "false");
      button.append(Object.assign(new Image(), { src: `/page/scenes/${name}`, alt: `Sample: ${name.replace(/\.\w+$/, "")}` }));
      button.addEventListener("click", () => take(getBlob(`/page/scenes/${name}`), name));
      return button;
    }),
  );
}

function listenToFiles() {
  for (const id of ["file", "capture"]) {
    $(id).addEventListener("change", ({ target }) => {
      if (target.files[0]) take(target.files[0], target.files[0].name);
      target.value = "";
    });
  }
  addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (file) take(file, file.name);
    else if (!event.target.closest?.("input")) complain("What was pasted holds no picture. Copy a picture, and paste again.");
  });
  let depth = 0;
  const over = (shown) => ($("over").hidden = !shown);
  addEventListener("dragenter", () => over(++depth > 0));
  addEventListener("dragleave", () => over((depth = Math.max(0, depth - 1)) > 0));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over((depth = 0) > 0);
    const file = event.dataTransfer?.files[0];
    if (event.dataTransfer?.items[0]?.webkitGetAsEntry()?.isDirectory) complain("That is a folder. Drop one picture; the command saccade predict answers a whole folder.");
    else if (file) take(file, file.name);
    else complain("That was no file. Save the picture first, and drop the file.");
  });
}

function listenToCamera() {
  const dialog = $("camera-dialog");
  let stream = null;
  let opening = false;
  $("camera").addEventListener("click", async () => {
    if (!navigator.mediaDevices) return $("capture").click(); // as it is without TLS
    if (opening || dialog.open) return null; // a stream that nobody holds would keep the camera on
    opening = true;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
    } catch (error) {
      const why = NO_CAMERA[error.name] ?? `The camera did not start (${error.message || error.name}). Try again`;
      return complain(`${why}, or choose a picture.`);
    } finally {
      opening = false;
    }
    complain("");
    $("video").srcObject = stream;
    dialog.showModal();
    return $("video").play();
  });
  $("shoot").addEventListener("click", () => {
    const { videoWidth, videoHeight } = $("video");
    const canvas = new OffscreenCanvas(videoWidth || 1, videoHeight || 1);
    canvas.getContext("2d").drawImage($("video"), 0, 0);
    dialog.close();
    take(canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 }), "camera.jpg");
  });
  $("camera-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => stream?.getTracks().forEach((track) => track.stop()));
}

function listenToKey() {
  $("key-button").addEventListener("click", host.askForKey);
  $("key-dialog").addEventListener("close", ({ target }) => {
    if (!target.returnValue) return;
    key.set(target.returnValue === "use" ? $("key-field").value.trim() : "");
    target.returnValue = "";
    showKey();
    if (panes.length === 0) begin();
    else for (const pane of panes) pane.run();
  });
  $("key-field").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    $("key-dialog").close("use");
  });
  showKey();
}

function showKey() {
  $("key-button").textContent = key.get() ? "Key set" : "Key";
  if (key.get()) $("api-link").hidden = true;
}

function listenToTheme() {
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const apply = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    $("theme").setAttribute("aria-pressed", String(dark()));
  };
  apply(localStorage.getItem(THEME));
  $("theme").addEventListener("click", () => {
    const theme = dark() ? "light" : "dark";
    localStorage.setItem(THEME, theme);
    apply(theme);
    for (const pane of panes) pane.view.paint();
  });
}

function complain(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

listenToTheme();
listenToFiles();
listenToCamera();
listenToKey();
$("compare").addEventListener("click", compare);
showSamples();
watch();
begin();
