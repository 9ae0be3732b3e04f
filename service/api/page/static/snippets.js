// The request of a pane as others would send it. A key is named by a variable, never shown.

import { key, pathOf } from "./api.js";

export function curl(task, parameters, fileName) {
  const lines = [`curl --data-binary @${quote(fileName)}`];
  if (key.get()) lines.push('-H "Authorization: Bearer $SACCADE_KEY"');
  lines.push(quote(location.origin + pathOf(task, parameters)));
  return lines.join(" \\\n  ");
}

export function python(task, parameters, fileName) {
  const pairs = Object.entries(parameters).map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(String(value))}`);
  const secured = key.get() !== "";
  return [
    ...(secured ? ["import os"] : []),
    "from pathlib import Path",
    "",
    "import requests",
    "",
    "response = requests.post(",
    `    ${JSON.stringify(`${location.origin}/v1/${task}`)},`,
    `    params={${pairs.join(", ")}},`,
    `    data=Path(${JSON.stringify(fileName)}).read_bytes(),`,
    ...(secured ? ["    headers={\"Authorization\": f\"Bearer {os.environ['SACCADE_KEY']}\"},"] : []),
    "    timeout=60,",
    ")",
    "response.raise_for_status()",
    "print(response.json())",
    "",
  ].join("\n");
}

function quote(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
