// Taking an answer along: as JSON, as a picture, or as the command that asks for it.

/** `current()` gives the file's `stem`, the answer's `text`, and the request as `curl` and `python`;
    `toPng()` the picture as it is shown.
 */
export function listenToTakers(root, { current, toPng, speak }) {
  const on = (selector, act) => root.querySelector(selector).addEventListener("click", act);
  on(".save-json", () => save(new Blob([current().text], { type: "application/json" }), `${current().stem}.json`));
  on(".save-picture", async () => save(await toPng(), `${current().stem}.png`));
  on(".copy-curl", ({ currentTarget }) => copy(currentTarget, current().curl));
  on(".copy-python", ({ currentTarget }) => copy(currentTarget, current().python));

  async function copy(button, text) {
    const before = button.dataset.text ?? (button.dataset.text = button.textContent);
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      root.querySelector("details").open = true; // without TLS, browsers give a page no clipboard
      root.querySelector(".code").textContent = text;
      button.textContent = "Copy it below";
    }
    speak(button.textContent);
    setTimeout(() => (button.textContent = before), 1600);
  }
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
