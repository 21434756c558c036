// Numbers and times as people read them, and elements that hold nothing but text.

/** Changes nothing where nothing is new, so that selections and screen readers are left in peace. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function make(name, text = "", attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

export const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
export const when = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

export function duration(seconds) {
  if (seconds < 90) return plural(Math.max(1, Math.round(seconds)), "second");
  return `${Math.round(seconds / 60)} minutes`;
}

/** Fills an element anew where the data it is made of have changed. */
export function fill(element, data, draw) {
  const key = JSON.stringify(data);
  if (element.dataset.shown === key) return;
  element.dataset.shown = key;
  element.replaceChildren(...draw(data));
}

export const terms = (pairs) => pairs.flatMap(([term, text]) => [make("dt", term), make("dd", text)]);
