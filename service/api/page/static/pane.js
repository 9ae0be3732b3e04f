// One picture, one model, one answer: the controls around them and what a click on them asks.

import { ask, getJson } from "./api.js";
import * as attention from "./attention.js";
import { colourOf, css, ramp } from "./colours.js";
import { drawBoxes, drawHeat, drawOutline, drawPoint, label } from "./draw.js";
import { readMasks, segmentAt, tint } from "./masks.js";
import { showProblem } from "./problems.js";
import { shorten, showResults, showTiming, showVector } from "./show.js";
import { curl, python } from "./snippets.js";
import { listenToTakers } from "./take.js";

const TASKS = { detect: "Detect", segment: "Segment", classify: "Classify", attention: "Attention", embed: "Embed" };
const INSTANCE_LEAST = 0.05; // each instance brings its own mask, so hopeless ones stay at home
const SEMANTIC_HINT = "A semantic map has classes, not objects: choose panoptic to ask what the model looked at.";
const TALLEST = 0.66; // of the window, so that the picture and what is said of it are seen together
const LARGEST_SCALE = 3;
const SAVED_PX = 1600;

let made = 0;

export class Pane {
  /** `host` speaks to people who do not see, and opens the dialog for a key. */
  constructor(models, host) {
    this.models = models;
    this.host = host;
    this.root = document.getElementById("pane").content.firstElementChild.cloneNode(true);
    this.id = `pane-${++made}`;
    this.manifests = new Map();
    this.picture = null;
    this.cursor = null;
    this.forget();
    this.#buildTasks();
    this.#listen();
  }

  $(selector) {
    return this.root.querySelector(selector);
  }

  /** Drops what was answered about another picture, model or task. */
  forget() {
    Object.assign(this, { reply: null, items: [], masks: null, look: null, picked: null, threshold: null, asked: null });
  }

  choose(task, name) {
    this.task = task;
    const able = this.models.filter((model) => model.tasks.includes(task));
    this.model = (able.find((model) => model.name === name) ?? able[0]).name;
    this.$(`input[value="${task}"]`).checked = true;
    this.$(".model").replaceChildren(...able.map((model) => new Option(model.name, model.name)));
    this.$(".model").value = this.model;
    this.mode = null;
    this.forget();
    return this.run();
  }

  /** `picture` has blob, name and, where the browser can read it, bitmap. */
  setPicture(picture) {
    this.picture = picture;
    this.cursor = null;
    this.forget();
    this.root.classList.remove("fresh");
    this.$(".empty").hidden = true;
    this.$(".view").hidden = !picture.bitmap;
    this.$(".unseen").hidden = Boolean(picture.bitmap);
    this.$(".unseen").textContent = `This browser cannot show ${picture.name}.`;
    this.paint();
    return this.run();
  }

  async run(parameters = {}) {
    this.#render();
    if (!this.picture) return;
    await this.#guarded(() => this.run(parameters), async (signal) => {
      const { manifest } = await this.#detail();
      this.#showModes(manifest);
      if (this.task === "attention") return this.#ask(manifest, {}, signal);
      const asked = { ...this.#parameters(manifest), ...parameters };
      const reply = await ask(this.task, this.picture.blob, asked, signal);
      const masks = reply.answer.segments ? await readMasks(reply.answer, manifest.labels) : null;
      if (signal.aborted) return;
      Object.assign(this, { reply, masks, asked, look: null, picked: null, sent: [this.task, asked] });
      this.items = this.#itemsOf(reply.answer, manifest);
      this.threshold = parameters.threshold ?? this.threshold ?? this.#defaultThreshold(manifest);
      this.#render();
      this.host.speak(this.#summary());
    });
  }

  /** Asks what the model attended to: for an object's or class's query, or from a point. */
  async explain(question, kindName) {
    await this.#guarded(() => this.explain(question, kindName), async (signal) => {
      const { manifest } = await this.#detail();
      await this.#ask(manifest, question, signal, kindName);
    });
  }

  get visible() {
    const least = this.#slides() ? this.threshold : 0;
    return this.items.filter((item) => item.score === null || item.score === undefined || item.score >= least);
  }

  paint() {
    const { bitmap } = this.picture ?? {};
    if (!bitmap) return;
    const view = this.$(".view");
    const room = this.$(".stage").clientWidth;
    const scale = Math.min(room / bitmap.width, (innerHeight * TALLEST) / bitmap.height, LARGEST_SCALE);
    const density = scale * (devicePixelRatio || 1);
    view.style.width = `${Math.round(bitmap.width * scale)}px`;
    view.style.height = `${Math.round(bitmap.height * scale)}px`;
    view.width = Math.round(bitmap.width * density);
    view.height = Math.round(bitmap.height * density);
    this.#draw(view.getContext("2d"), density, 1 / scale);
    if (this.cursor) drawPoint(view.getContext("2d"), this.cursor, 1 / scale);
  }

  async #detail() {
    if (!this.manifests.has(this.model)) {
      this.manifests.set(this.model, await getJson(`/v1/models/${encodeURIComponent(this.model)}`));
    }
    return this.manifests.get(this.model);
  }

  get #manifest() {
    return this.manifests.get(this.model)?.manifest;
  }

  async #guarded(again, work) {
    this.abort?.abort();
    const { signal } = (this.abort = new AbortController());
    this.root.classList.add("working");
    this.$(".problem").hidden = true;
    try {
      await work(signal);
    } catch (error) {
      if (signal.aborted) return;
      const { askForKey, choosePicture } = this.host;
      showProblem(this.$(".problem"), error, { again, askForKey, choose: choosePicture });
    } finally {
      if (!signal.aborted) this.root.classList.remove("working");
    }
  }

  async #ask(manifest, question, signal, kindName) {
    const kind = manifest.explain?.kinds.find((one) => one.name === kindName) ?? attention.kindFor(manifest.explain, question);
    if (!kind) return;
    const asked = attention.parametersFor(this.model, kind, question);
    const reply = await ask("attention", this.picture.blob, asked, signal);
    if (signal.aborted) return;
    const layers = [...new Set(reply.answer.maps.map((map) => map.layer))].filter((layer) => layer !== null);
    const heads = [...new Set(reply.answer.maps.map((map) => map.head))].filter((head) => typeof head === "number");
    this.look = { kind, question, reply, allLayers: layers, allHeads: heads, layers: new Set(layers.slice(-1)), heads: new Set(heads) };
    this.sent = ["attention", asked];
    this.picked = null;
    this.#render();
    this.host.speak(`What the model looked at is shown. ${attention.describe(reply.answer)}`);
  }

  #parameters(manifest) {
    const model = this.model;
    if (this.task === "classify") return { model, top_k: Math.min(10, manifest.labels.length) };
    if (this.task === "detect") return { model, threshold: 0 };
    if (this.task !== "segment") return { model };
    return this.mode === "instance" ? { model, mode: this.mode, threshold: INSTANCE_LEAST } : { model, mode: this.mode };
  }

  #defaultThreshold(manifest) {
    if (this.task !== "segment") return manifest.defaults.threshold;
    return (this.mode === "instance" ? manifest.segmentation.instance_threshold : null) ?? manifest.segmentation.threshold;
  }

  #itemsOf(answer, manifest) {
    if (this.masks) return this.masks.segments;
    const own = new Map(manifest.labels.map((one) => [one.id, one.color]));
    return (answer.predictions ?? []).map((one) => ({ ...one, colour: colourOf(one.label_id, own.get(one.label_id)) }));
  }

  #slides() {
    return this.task === "detect" || (this.task === "segment" && this.mode !== "semantic");
  }

  /** Panoptic masks compete for pixels: those below what was asked for are not among them. */
  #lowest() {
    return this.task === "segment" ? (this.asked?.threshold ?? (this.#manifest ? this.#defaultThreshold(this.#manifest) : 0)) : 0;
  }

  #questionOf(item) {
    const has = (kind) => this.#manifest?.explain?.kinds.some((one) => one.query === kind);
    if (item.query !== undefined && item.query !== null && has("object")) return { kind: "object", query: item.query, box: item.box };
    if (this.task === "classify" && has("class")) return { kind: "class", query: item.label_id };
    return null;
  }

  #hit(x, y) {
    const { width, height } = this.picture.bitmap;
    if (this.masks) return segmentAt(this.masks, Math.min(x / width, 0.9999), Math.min(y / height, 0.9999), this.visible);
    const inside = this.visible.filter(({ box }) => box && x >= box.xmin && x <= box.xmax && y >= box.ymin && y <= box.ymax);
    const area = ({ box }) => (box.xmax - box.xmin) * (box.ymax - box.ymin);
    return inside.sort((one, other) => area(one) - area(other))[0] ?? null;
  }

  #press(x, y) {
    const item = this.#hit(x, y);
    const question = item && this.#questionOf(item);
    if (question) return this.explain(question);
    const kinds = this.#manifest?.explain?.kinds ?? [];
    const asksPoints = (kind) => ["token", "place"].includes(kind.query);
    const kept = this.look && asksPoints(this.look.kind) ? this.look.kind.name : undefined;
    if (kinds.some(asksPoints)) return this.explain({ point: [x, y] }, kept);
    this.host.speak((this.$(".hint").textContent = this.#whyNot(kinds)));
    return null;
  }

  #whyNot(kinds) {
    if (kinds.length === 0) return "This model's bundle has no attention maps.";
    if (this.mode === "semantic") return SEMANTIC_HINT;
    return "This model tells what it looked at for each object: click one.";
  }

  #draw(context, density, unit) {
    const { bitmap } = this.picture;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0);
    if (this.look) return this.#drawLook(context, unit);
    if (this.masks) {
      context.drawImage(tint(this.masks, this.visible, this.picked), 0, 0, bitmap.width, bitmap.height);
      const named = this.picked ? [this.picked] : this.visible;
      for (const one of named) {
        label(context, one, one.anchor[0] * bitmap.width, one.anchor[1] * bitmap.height, unit, true);
      }
    } else if (this.task === "detect") {
      drawBoxes(context, this.visible, this.picked, unit);
    }
    return null;
  }

  #drawLook(context, unit) {
    const { reply, layers, heads, question } = this.look;
    const map = attention.combine(reply.answer, layers, heads);
    if (map) drawHeat(context, attention.heat(map), map.region, this.$(".smooth").checked);
    const { explained } = reply.answer;
    const box = explained?.box ?? question.box;
    if (box) drawOutline(context, box, unit);
    if (explained?.point ?? (question.point && reply.answer.maps[0].query !== "class")) {
      drawPoint(context, explained?.point ? [explained.point.x, explained.point.y] : question.point, unit);
    }
  }

  #render() {
    const has = Boolean(this.reply || this.look);
    this.$(".answer").hidden = !this.reply || this.task === "attention" || Boolean(this.look);
    this.$(".look").hidden = !this.look;
    this.$(".timing").hidden = this.$(".take").hidden = !has;
    this.$(".back").hidden = this.task === "attention";
    this.#renderAnswer();
    if (this.look) this.#renderLook();
    if (has) this.#renderRequest();
    this.$(".hint").textContent = this.#hint();
    this.$(".view").setAttribute("aria-label", this.#summary());
    this.paint();
  }

  #renderAnswer() {
    const slides = this.reply && this.#slides();
    this.$(".threshold").hidden = !slides;
    if (slides) {
      const lowest = this.#lowest();
      this.$(".threshold input").value = this.threshold;
      this.$(".threshold output").textContent = this.threshold.toFixed(2);
      const merged = this.task === "segment" && this.mode !== "instance";
      this.$(".threshold .fine").textContent = !merged
        ? ""
        : this.threshold < lowest
          ? "Let go to ask again: so low, more masks compete for the pixels."
          : "Hides segments; their pixels are not given to others.";
    }
    this.$(".vector").hidden = !this.reply?.answer.embedding;
    if (this.reply?.answer.embedding) showVector(this.$(".vector"), this.reply.answer.embedding);
    this.$(".count").textContent = this.#count();
    showResults(this.$(".results"), this.visible, {
      share: (one) => (one.area ? one.area / (this.reply.answer.image.width * this.reply.answer.image.height) : null),
      explains: (one) => this.#questionOf(one) !== null,
      press: (one) => this.explain(this.#questionOf(one)),
      pick: (one) => this.#pick(one),
    });
  }

  #count() {
    const { embedding } = this.reply?.answer ?? {};
    if (embedding) return `${embedding.length} numbers`;
    const many = this.visible.length;
    const noun = { detect: "object", segment: "segment", classify: "class" }[this.task] ?? "";
    return `${many} ${noun}${many === 1 ? "" : noun === "class" ? "es" : "s"}`;
  }

  #renderLook() {
    const { kind, question, reply, allLayers, allHeads, layers, heads } = this.look;
    this.$(".about").textContent = attention.describe(reply.answer);
    const kinds = this.#manifest.explain.kinds;
    this.$(".kinds").hidden = kinds.length < 2;
    this.$(".kinds").replaceChildren(
      ...kinds.map((one) => this.#radio("kind", one.name, attention.nameOf(one), one === kind, () => this.explain(this.#carried(question, one), one.name))),
    );
    this.#toggles(".layers", allLayers, layers);
    this.#toggles(".heads", allHeads, heads);
    const canvas = this.$(".ramp");
    ramp.forEach(([r, g, b], x) => {
      const context = canvas.getContext("2d");
      context.fillStyle = css([r, g, b]);
      context.fillRect(x, 0, 1, 1);
    });
  }

  /** What of a question a kind of another sort can take. */
  #carried(question, kind) {
    if (question.point && ["token", "place"].includes(kind.query)) return question;
    return question.kind === kind.query ? question : {};
  }

  #toggles(selector, all, on) {
    const box = this.$(selector);
    box.parentElement.hidden = all.length < 2;
    const chip = (text, pressed, act, name) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: text, className: "chip" });
      button.setAttribute("aria-pressed", pressed);
      button.setAttribute("aria-label", name);
      button.addEventListener("click", () => {
        act();
        const at = [...box.children].indexOf(button);
        this.#render();
        box.children[at]?.focus();
      });
      return button;
    };
    const word = selector === ".layers" ? "layer" : "head";
    box.replaceChildren(
      chip("all", on.size === all.length, () => (on.size === all.length ? keepOnly(on, all.at(-1)) : all.forEach((n) => on.add(n))), `All ${word}s`),
      ...all.map((n) => chip(String(n), on.has(n), () => flip(on, n, all), `${word} ${n}`)),
    );
  }

  #renderRequest() {
    const reply = this.look?.reply ?? this.reply;
    showTiming(this.$(".timing"), reply.timing, reply.tookMs);
    this.$(".code").textContent = this.#current().curl;
    this.$(".json").textContent = shorten(reply.answer);
  }

  #hint() {
    if (!this.picture?.bitmap || !(this.reply || this.look)) return "";
    const kinds = this.#manifest?.explain?.kinds ?? [];
    const points = kinds.some((kind) => ["token", "place"].includes(kind.query));
    const objects = !this.look && this.items.some((item) => this.#questionOf(item));
    if (objects && (this.task !== "classify")) return `Click an object to see what the model looked at${points ? ", or a place beside them" : ""}.`;
    if (this.mode === "semantic") return SEMANTIC_HINT;
    if (points) return "Click a place to see what the model relates it to.";
    if (this.task === "attention") return "This is the best object. Choose the model's other task to click the rest.";
    return "";
  }

  #summary() {
    if (this.look) return `Attention of ${this.model}. ${attention.describe(this.look.reply.answer)}`;
    if (!this.reply) return "The picture";
    const names = this.visible.slice(0, 5).map((one) => (one.score ? `${one.label} ${one.score.toFixed(2)}` : one.label));
    return [this.#count(), names.join(", ")].filter(Boolean).join(": ");
  }

  #showModes(manifest) {
    const modes = this.task === "segment" ? (manifest.segmentation?.modes ?? []) : [];
    this.$(".mode-pick").hidden = modes.length < 2;
    if (modes.length === 0 || this.mode) return;
    this.mode = modes[0];
    this.$(".mode").replaceChildren(...modes.map((mode) => new Option(mode, mode)));
  }

  #pick(item) {
    if (this.picked === item || this.look) return;
    this.picked = item;
    this.paint();
  }

  #radio(group, value, text, checked, act) {
    const wrap = document.createElement("label");
    wrap.className = "segment";
    const input = Object.assign(document.createElement("input"), { type: "radio", name: `${this.id}-${group}`, value, checked });
    input.addEventListener("change", act);
    wrap.append(input, Object.assign(document.createElement("span"), { textContent: text }));
    return wrap;
  }

  #buildTasks() {
    const offered = Object.keys(TASKS).filter((task) => this.models.some((model) => model.tasks.includes(task)));
    const radios = offered.map((task) => this.#radio("task", task, TASKS[task], false, () => this.choose(task, this.model)));
    this.$(".tasks").replaceChildren(...radios);
  }

  #listen() {
    this.$(".model").addEventListener("change", (event) => this.choose(this.task, event.target.value));
    this.$(".mode").addEventListener("change", (event) => {
      this.forget();
      this.mode = event.target.value;
      this.run();
    });
    this.$(".back").addEventListener("click", () => this.#back());
    this.$(".smooth").addEventListener("change", () => this.paint());
    this.#listenToThreshold();
    this.#listenToPicture();
    const { speak } = this.host;
    listenToTakers(this.root, { current: () => this.#current(), toPng: () => this.#toPng(), speak });
    new ResizeObserver(() => this.paint()).observe(this.$(".stage"));
  }

  #back() {
    this.look = null;
    this.sent = [this.task, this.asked];
    this.#render();
    this.$(".view").focus({ preventScroll: true });
  }

  #listenToThreshold() {
    const slider = this.$(".threshold input");
    const id = `${this.id}-threshold`;
    slider.id = id;
    this.$(".threshold label").htmlFor = id;
    slider.addEventListener("input", () => {
      this.threshold = Number(slider.value);
      this.#render();
    });
    slider.addEventListener("change", () => {
      if (this.task === "segment" && this.threshold < this.#lowest()) this.run({ threshold: this.threshold });
    });
  }

  #listenToPicture() {
    const view = this.$(".view");
    const at = (event) => {
      const box = view.getBoundingClientRect();
      const { width, height } = this.picture.bitmap;
      return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
    };
    view.addEventListener("click", (event) => {
      this.cursor = null;
      this.#press(...at(event));
    });
    view.addEventListener("pointermove", (event) => event.pointerType === "mouse" && this.reply && this.#pick(this.#hit(...at(event))));
    view.addEventListener("pointerleave", () => this.#pick(null));
    view.addEventListener("blur", () => {
      this.cursor = null;
      this.paint();
    });
    view.addEventListener("keydown", (event) => this.#key(event));
  }

  #key(event) {
    const { width, height } = this.picture.bitmap;
    const step = Math.max(width, height) / (event.shiftKey ? 100 : 25);
    const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (right || down) {
      const [x, y] = this.cursor ?? [width / 2, height / 2];
      this.cursor = [clamp(x + right * step, width), clamp(y + down * step, height)];
      const item = this.look ? null : this.#hit(...this.cursor);
      this.picked = item;
      this.paint();
      this.host.speak(item ? `${item.label} at ${this.cursor.map(Math.round).join(", ")}` : this.cursor.map(Math.round).join(", "));
    } else if (event.key === "Enter" || event.key === " ") {
      this.#press(...(this.cursor ?? [width / 2, height / 2]));
    } else if (event.key === "Escape" && this.look && this.task !== "attention") {
      this.#back();
    } else return;
    event.preventDefault();
  }

  /** What there is to take along. */
  #current() {
    const name = this.picture.name.replace(/\.\w+$/, "");
    const [task, parameters] = this.sent;
    return {
      stem: `${name}-${task}`,
      text: (this.look?.reply ?? this.reply).text,
      curl: curl(task, parameters, this.picture.name),
      python: python(task, parameters, this.picture.name),
    };
  }

  #toPng() {
    const { width, height } = this.picture.bitmap;
    const scale = Math.max(1, Math.min(LARGEST_SCALE, SAVED_PX / Math.max(width, height)));
    const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
    this.#draw(canvas.getContext("2d"), scale, Math.max(width, height) / 800);
    return canvas.convertToBlob({ type: "image/png" });
  }
}

function flip(on, value, all) {
  if (on.size === all.length) return keepOnly(on, value);
  if (!on.delete(value)) on.add(value);
  if (on.size === 0) on.add(value);
  return on;
}

function keepOnly(on, value) {
  on.clear();
  return on.add(value);
}

function clamp(value, most) {
  return Math.min(Math.max(value, 0), most - 0.01);
}
