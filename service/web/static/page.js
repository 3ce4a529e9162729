// Keys for those who keep their hands on the keyboard, and changes as they happen. The page is complete without it.
"use strict";

const FOCUSABLE = "a[href], button, input, select, textarea, summary, [tabindex]";

function step(by) {
  const links = [...document.querySelectorAll("main tbody tr th a, main tbody tr td:first-child a, main li.row a")];
  const row = document.activeElement?.closest("tr, li.row");
  const at = links.findIndex((link) => link === document.activeElement || (row && row.contains(link)));
  const next = links[at < 0 ? (by > 0 ? 0 : links.length - 1) : at + by];
  if (next) next.focus();
}

const KEYS = {
  "/": () => {
    const box = document.querySelector("input[type=search]");
    if (box) box.focus();
    else location.assign(document.querySelector("a.home").href);
  },
  j: () => step(1),
  k: () => step(-1),
  r: () => location.reload(),
  "?": () => {
    const keys = document.getElementById("keys");
    keys.open = !keys.open;
    keys.querySelector("summary").focus();
  },
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});

// Replace the items that have changed, and keep the focus where it was.
function change(list, { items = {}, keys }) {
  const present = new Map([...list.children].map((item) => [item.dataset.key, item]));
  for (const [key, html] of Object.entries(items)) {
    const template = document.createElement("template");
    template.innerHTML = html;
    const item = template.content.firstElementChild;
    const before = present.get(key);
    present.set(key, item);
    if (!before) continue;
    const at = [...before.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
    before.querySelectorAll("details").forEach((details, number) => {
      const same = item.querySelectorAll("details")[number];
      if (same) same.open = details.open;
    });
    before.replaceWith(item);
    if (at >= 0) item.querySelectorAll(FOCUSABLE)[at]?.focus();
  }
  if (!keys) return;
  const focused = document.activeElement;
  list.replaceChildren(...keys.map((key) => present.get(key)).filter(Boolean));
  if (focused.isConnected && list.contains(focused)) focused.focus();
}

function watch(live) {
  const { url, page, args, digest } = live.dataset;
  const source = new EventSource(`${url}?${new URLSearchParams({ page, args, digest })}`);
  source.onopen = () => { live.textContent = "Live ·"; };
  source.onerror = () => { live.textContent = "Not live, reload by hand ·"; };
  source.addEventListener("change", (event) => {
    for (const [name, changes] of Object.entries(JSON.parse(event.data))) {
      const list = document.querySelector(`[data-live="${name}"]`);
      if (list) change(list, changes);
    }
  });
  // a page that nobody can see needs no news; when it is seen again, it gets what has changed
  addEventListener("pagehide", () => source.close());
}

const live = document.getElementById("live");
if (live) watch(live);
