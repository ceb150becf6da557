// Elements of text, never of markup: `create("p", {class: "faint"}, "text", element, ...)`.
function create(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

function select(title, options, value, onchange) {
  const choose = create("select", { onchange: (event) => onchange(event.target.value) });
  for (const [name, text] of options) choose.append(create("option", { value: name }, text));
  choose.value = value;
  return create("label", {}, title, choose);
}

function checkbox(title, checked, onchange) {
  const box = create("input", {
    type: "checkbox", checked, onchange: (event) => onchange(event.target.checked),
  });
  return create("label", {}, box, ` ${title}`);
}

function table(header, rows, { className = "", numbers = [] } = {}) {
  const cell = (value, place) =>
    create("td", { class: numbers.includes(place) ? "number" : null }, value ?? "");
  const head = create("tr", {}, ...header.map((text) => create("th", { scope: "col" }, text)));
  return create("div", { class: "scroll" }, create("table", { class: className },
    header.length ? create("thead", {}, head) : null,
    create("tbody", {}, ...rows.map((row) => create("tr", {}, ...row.map(cell))))));
}

// Puts what `make` makes in an element's place; the control that was in hand is in hand again.
function redrawn(old, make) {
  const labelOf = (control) => control?.closest("label")?.firstChild.textContent
    ?? control?.closest("label")?.textContent;
  const held = old.contains(document.activeElement) ? labelOf(document.activeElement) : null;
  const now = make();
  old.replaceWith(now);
  if (held != null)
    [...now.querySelectorAll("label select, label input")].find((it) => labelOf(it) === held)?.focus();
}

// Four digits that count.
function number(value) {
  if (value == null) return "none";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}

const amount = (value, unit) =>
  value == null ? "none" : unit === "%" ? number(100 * value) : number(value);

const words = (name) => name.replaceAll("_", " ");

// Okabe and Ito's colours, which people with any colour vision tell apart; dashes do it in grey.
const COLOURS = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a87900", "#3a8fc4", "#1b1b1b"],
  dark: ["#4aa8e0", "#f08a3c", "#2fc79b", "#e29cc4", "#e6b422", "#8fd0f5", "#e8e8e8"],
};
// One fewer than colours, so that as many runs as both can tell look different.
const DASHES = [[], [8, 4], [2, 3], [12, 3, 3, 3], [5, 2], [14, 5]];
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function styleOf(index) {
  const colours = COLOURS[dark.matches ? "dark" : "light"];
  return { colour: colours[index % colours.length], dash: DASHES[index % DASHES.length] };
}

const DRAWN = "http://www.w3.org/2000/svg";

function swatch(index) {
  const { colour, dash } = styleOf(index);
  const image = document.createElementNS(DRAWN, "svg");
  const line = document.createElementNS(DRAWN, "line");
  image.setAttribute("width", 28);
  image.setAttribute("height", 6);
  image.setAttribute("aria-hidden", "true");
  const looks = { x1: 0, y1: 3, x2: 28, y2: 3, stroke: colour, "stroke-width": 3,
    "stroke-dasharray": dash.join(" ") };
  for (const [name, value] of Object.entries(looks)) line.setAttribute(name, value);
  image.append(line);
  return image;
}
