// Copying, also on pages that came without TLS, where browsers have no clipboard to offer.

/** Whether it was copied. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const box = document.createElement("textarea");
    box.value = text;
    box.className = "unseen";
    (document.querySelector("dialog[open]") || document.body).append(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    return done;
  }
}

/** Copy, and say so on the button for a moment. */
export async function copyFrom(button, text) {
  const before = button.dataset.label || button.textContent;
  button.dataset.label = before;
  const done = await copy(text);
  button.textContent = done ? "Copied" : "Not copied";
  document.getElementById("told").textContent = done ? "Copied" : "The browser did not let this page copy";
  setTimeout(() => {
    button.textContent = before;
  }, 1500);
}
