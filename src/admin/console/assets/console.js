// Copying, and live refresh of what is marked with data-live. Everything else works without script.
"use strict";

const REFRESH_MS = 10_000;

for (const button of document.querySelectorAll("button[data-copy]")) {
  const text = document.getElementById(button.dataset.copy);
  button.hidden = false;
  button.addEventListener("click", async () => {
    const label = button.innerHTML;
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = button.dataset.done;
    } catch {
      // Browsers allow it only over TLS and on this machine: the text is selected instead.
      getSelection().selectAllChildren(text);
      return;
    }
    setTimeout(() => { button.innerHTML = label; }, 2_000);
  });
}

const isBusy = (part) => part.contains(document.activeElement) || part.querySelector("details[open], :hover");

async function refresh() {
  const parts = document.querySelectorAll("[data-live]");
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, { redirect: "error", headers: { accept: "text/html" } });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelectorAll("[data-live]");
    if (fresh.length !== parts.length) return;
    parts.forEach((part, place) => { if (!isBusy(part)) part.replaceChildren(...fresh[place].childNodes); });
  } catch {
    // The next one may succeed; until then the page shows what it has.
  }
}

if (document.querySelector("[data-live]")) setInterval(refresh, REFRESH_MS);
