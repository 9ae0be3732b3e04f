// What went wrong, in words: what happened comes from the server, and what to do where it knows.

import { Problem } from "./api.js";

const BUSY = ["The server is busy", "Wait a moment, and try again."];
const ADVICE = {
  bad_image: ["The picture is damaged", ""],
  decoder_lost: ["The picture cannot be decoded", ""],
  quarantined: ["This picture is not run again", ""],
  401: ["A key is needed", "Enter a key that this server knows."],
  403: ["This key does not open that", "Enter another key."],
  404: ["Not there any more", "Reload the page to see what the server has now."],
  408: ["The picture came too slowly", "Try again, or send a smaller picture."],
  413: ["The picture is too large", ""],
  415: ["This cannot be read as a picture", ""],
  429: BUSY,
  500: ["The server failed", "Tell whoever runs it the number of the request: its log has the rest."],
  503: ["The server is not ready", "It is starting, stopping or recovering. Try again in a moment."],
  504: ["It took too long", "Try again when less is waiting, or send a smaller picture."],
};
const OF_THE_KEY = [401, 403];
const OF_THE_PICTURE = [400, 413, 415, "quarantined"];

/** `again` repeats the request, `askForKey` and `choose` open what they say. */
export function showProblem(box, error, { again, askForKey, choose }) {
  const problem = error instanceof Problem ? error : unexpected(error);
  const [title, advice] = ADVICE[problem.code] ?? ADVICE[problem.status] ?? [problem.title, ""];
  const said = sentence(problem.message);
  box.querySelector("h3").textContent = title;
  box.querySelector(".detail").textContent = advice ? `${said} ${advice}` : said;
  box.querySelector(".fine").textContent = [
    problem.status || "",
    problem.code,
    problem.requestId && `request ${problem.requestId}`,
  ].filter(Boolean).join(" · ");
  const [text, act] = OF_THE_KEY.includes(problem.status)
    ? ["Enter a key", askForKey]
    : OF_THE_PICTURE.some((one) => one === problem.status || one === problem.code)
      ? ["Choose another picture", choose]
      : [problem.retryAfterS ? `Try again in ${Math.ceil(problem.retryAfterS)} s or later` : "Try again", again];
  const button = box.querySelector(".again");
  button.textContent = text;
  button.onclick = act;
  box.hidden = false;
}

function unexpected(error) {
  console.error(error);
  return new Problem({ title: "This page failed", detail: `${error.message}. Reload it; if that does not help, tell its makers.` });
}

function sentence(text) {
  const upper = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(upper) ? upper : `${upper}.`;
}
