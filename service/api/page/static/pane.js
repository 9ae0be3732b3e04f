// One picture, one model, one answer: the controls around them and what a click on them asks.

import { ask, getJson } from "./api.js";
import * as attention from "./attention.js";
import { colourOf, css, ramp } from "./colours.js";
import { readMasks } from "./masks.js";
import { showProblem } from "./problems.js";
import { shorten, showResults, showTiming, showVector } from "./show.js";
import { curl, python } from "./snippets.js";
import { listenToTakers } from "./take.js";
import { View } from "./view.js";
import { count, hint, summary, whyNot } from "./words.js";

const TASKS = { detect: "Detect", segment: "Segment", classify: "Classify", attention: "Attention", embed: "Embed" };
const INSTANCE_LEAST = 0.05; // each instance brings its own mask, so hopeless ones stay at home

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
    this.view = new View(this);
    this.forget();
    this.#buildTasks();
    this.#listen();
  }

  $(selector) {
    return this.root.querySelector(selector);
  }

  /** Takes the pane off the page, with what it waits for. */
  leave() {
    this.abort?.abort();
    this.view.leave();
    this.root.remove();
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
    this.view.cursor = null;
    this.forget();
    this.root.classList.remove("fresh");
    this.$(".empty").hidden = true;
    this.$(".view").hidden = !picture.bitmap;
    this.$(".unseen").hidden = Boolean(picture.bitmap);
    this.$(".unseen").textContent = `This browser cannot show ${picture.name}.`;
    this.$(".save-picture").hidden = !picture.bitmap;
    this.view.paint();
    return this.run();
  }

  run(parameters = {}) {
    this.#render();
    if (!this.picture) return null;
    this.answering = this.#guarded(() => this.run(parameters), async (signal) => {
      const { manifest } = await this.#detail();
      this.#showModes(manifest);
      if (this.task === "attention") return this.#ask(manifest, {}, signal);
      const asked = { ...this.#parameters(manifest), ...parameters };
      const reply = await ask(this.task, this.picture.blob, asked, signal);
      const masks = reply.answer.segments ? await readMasks(reply.answer, manifest.labels) : null;
      if (signal.aborted) return;
      Object.assign(this, { reply, masks, asked, look: null, picked: null, sent: [this.task, asked] });
      this.items = this.#itemsOf(reply.answer, manifest);
      this.threshold ??= this.#defaultThreshold(manifest); // which may have been moved meanwhile
      this.#render();
      this.host.speak(summary(this));
    });
    return this.answering;
  }

  /** Asks what the model attended to: for an object's or class's query, or from a point. */
  async explain(question, kindName) {
    if (!(await this.#answered())) return;
    await this.#guarded(() => this.explain(question, kindName), async (signal) => {
      const { manifest } = await this.#detail();
      await this.#ask(manifest, question, signal, kindName);
    });
  }

  /** Waits for the answer that is on its way, which a click would otherwise cost; false if another
      was asked for since.
   */
  async #answered() {
    const { answering } = this;
    await answering;
    return answering === this.answering;
  }

  get visible() {
    const least = this.#slides() ? this.threshold : 0;
    return this.items.filter((item) => item.score === null || item.score === undefined || item.score >= least);
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

  /** Kinds of attention maps that the model has. */
  get kinds() {
    return this.#manifest?.explain?.kinds ?? [];
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

  /** What to ask of what the model found; null where it tells nothing of that. */
  questionOf(item) {
    const has = (kind) => this.kinds.some((one) => one.query === kind);
    if (item.query !== undefined && item.query !== null && has("object")) return { kind: "object", query: item.query, box: item.box };
    if (this.task === "classify" && has("class")) return { kind: "class", query: item.label_id };
    return null;
  }

  /** Asks about a place of the picture, in its pixels, or about what was found there. */
  async press(x, y) {
    if (!(await this.#answered())) return null;
    const item = this.view.hit(x, y);
    const question = item && this.questionOf(item);
    if (question) return this.explain(question);
    const { asksPoints } = attention;
    const kept = this.look && asksPoints(this.look.kind) ? this.look.kind.name : undefined;
    if (this.kinds.some(asksPoints)) return this.explain({ point: [x, y] }, kept);
    this.host.speak((this.$(".hint").textContent = whyNot(this)));
    return null;
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
    this.$(".hint").textContent = hint(this);
    this.$(".view").setAttribute("aria-label", summary(this));
    this.view.paint();
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
          : "Hides segments. Copied commands ask with this threshold, and then others get their pixels.";
    }
    this.$(".vector").hidden = !this.reply?.answer.embedding;
    if (this.reply?.answer.embedding) showVector(this.$(".vector"), this.reply.answer.embedding);
    this.$(".count").textContent = count(this);
    showResults(this.$(".results"), this.visible, {
      share: (one) => (one.area ? one.area / (this.reply.answer.image.width * this.reply.answer.image.height) : null),
      explains: (one) => this.questionOf(one) !== null,
      press: (one) => this.explain(this.questionOf(one)),
      pick: (one) => this.pick(one),
    });
  }

  #renderLook() {
    const { kind, question, reply, allLayers, allHeads, layers, heads } = this.look;
    this.$(".about").textContent = attention.describe(reply.answer);
    this.$(".kinds").hidden = this.kinds.length < 2;
    this.$(".kinds").replaceChildren(
      ...this.kinds.map((one) => this.#radio("kind", one.name, attention.nameOf(one), one === kind, () => this.explain(this.#carried(question, one), one.name))),
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
    if (question.point && attention.asksPoints(kind)) return question;
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

  #showModes(manifest) {
    const modes = this.task === "segment" ? (manifest.segmentation?.modes ?? []) : [];
    this.$(".mode-pick").hidden = modes.length < 2;
    if (modes.length === 0 || this.mode) return;
    this.mode = modes[0];
    this.$(".mode").replaceChildren(...modes.map((mode) => new Option(mode, mode)));
  }

  /** Marks what the pointer or the focus is on. */
  pick(item) {
    if (this.picked === item || this.look) return;
    this.picked = item;
    this.view.paint();
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
    this.$(".back").addEventListener("click", () => this.back());
    this.$(".smooth").addEventListener("change", () => this.view.paint());
    this.#listenToThreshold();
    const { speak } = this.host;
    listenToTakers(this.root, { current: () => this.#current(), toPng: () => this.view.toPng(), speak });
  }

  /** From attention to what was answered. */
  back() {
    this.look = null;
    this.sent = [this.task, this.asked];
    if (this.reply) this.#render();
    else this.run(); // it had failed
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

  /** The request for what is seen: more was asked for, so that sliding and toggling ask no more. */
  #seen() {
    const [task, parameters] = this.sent;
    if (this.look) return [task, attention.narrowed(parameters, this.look)];
    return [task, this.#slides() ? { ...parameters, threshold: this.threshold } : parameters];
  }

  /** What there is to take along. */
  #current() {
    const name = this.picture.name.replace(/\.\w+$/, "");
    const [task, parameters] = this.#seen();
    return {
      stem: `${name}-${task}`,
      text: (this.look?.reply ?? this.reply).text,
      curl: curl(task, parameters, this.picture.name),
      python: python(task, parameters, this.picture.name),
    };
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
