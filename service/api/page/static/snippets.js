// The request of a pane as others would send it. A key is named by a variable, never shown.

import { key, pathOf } from "./api.js";

const DRAWN = ["detect", "segment", "attention"];

export function curl(task, parameters, fileName) {
  const lines = [`curl --data-binary @${quote(fileName)}`];
  if (key.get()) lines.push('-H "Authorization: Bearer $SACCADE_KEY"');
  lines.push(quote(location.origin + pathOf(task, parameters)));
  return lines.join(" \\\n  ");
}

/** With the project's own client, which waits for a busy server and can draw what it is told. */
export function python(task, parameters, fileName) {
  const secured = key.get() !== "";
  const options = Object.entries(parameters).map(([name, value]) => `${name}=${literal(name, value)}`);
  return [
    "# pip install 'saccade[client]'",
    ...(secured ? ["import os", ""] : []),
    "from saccade_client import Client",
    "",
    `client = Client(${JSON.stringify(location.origin)}${secured ? ', api_key=os.environ["SACCADE_KEY"]' : ""})`,
    `answer = client.${task}(${[JSON.stringify(fileName), ...options].join(", ")})`,
    "print(answer.json)",
    ...(DRAWN.includes(task) ? [`answer.draw().save(${JSON.stringify(`${fileName.replace(/\.\w+$/, "")}-${task}.png`)})`] : []),
    "",
  ].join("\n");
}

function literal(name, value) {
  return name === "point" ? `(${value.replace(",", ", ")})` : JSON.stringify(value);
}

function quote(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
