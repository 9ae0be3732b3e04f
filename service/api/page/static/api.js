// What the page asks of the server; every failure becomes a Problem with words to show.

const KEY = "saccade-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export class Problem extends Error {
  constructor({ title, detail, status = 0, code = "", request_id = "", retry_after_s = 0 }) {
    super(detail);
    Object.assign(this, { title, detail, status, code, requestId: request_id, retryAfterS: retry_after_s });
  }
}

export async function getJson(path) {
  const response = await send(path);
  return parse(await response.text(), response);
}

/** A file that comes with the page. */
export async function getBlob(path) {
  return (await send(path)).blob();
}

/** Posts a picture; the answer as text too, so that what is saved is what was sent. */
export async function ask(task, blob, parameters, signal) {
  const began = performance.now();
  const response = await send(pathOf(task, parameters), {
    method: "POST",
    body: blob,
    headers: { "Content-Type": "application/octet-stream", Accept: "application/json" },
    signal,
  });
  const text = await response.text();
  const tookMs = performance.now() - began;
  return { answer: parse(text, response), text, timing: readTiming(response.headers.get("Server-Timing")), tookMs };
}

export function pathOf(task, parameters) {
  const query = new URLSearchParams(parameters).toString().replaceAll("%2C", ",");
  return `/v1/${task}${query ? `?${query}` : ""}`;
}

/** "decode;dur=1.5, total;dur=9" as [["decode", 1.5], ["total", 9]], in milliseconds. */
export function readTiming(header) {
  return [...(header ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]);
}

async function send(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      title: "No answer",
      code: "no_answer",
      detail: options.body
        ? `${location.host} did not answer. Either it has stopped, or it closed the connection, as it does ` +
          "when a picture has far more bytes than it accepts. See whether the server runs, and try a smaller picture."
        : `${location.host} did not answer. See whether the server runs, and try again.`,
    });
  }
  if (response.ok) return response;
  throw new Problem(await describe(response));
}

function parse(text, response) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Problem(strange(response, "what came is no answer of a Saccade server"));
  }
}

async function describe(response) {
  const problem = await response.json().catch(() => null);
  return problem?.detail ? problem : strange(response, "it came without a reason");
}

function strange({ status, statusText }, what) {
  return {
    title: status === 200 ? "A strange answer" : statusText || "Refused",
    status: status === 200 ? 0 : status,
    detail: `Status ${status}, and ${what}: something between this page and the server may have answered. Try again, or reload the page.`,
  };
}
