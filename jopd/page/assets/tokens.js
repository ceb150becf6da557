// The answers, every token in the colour of what was measured of it.

// `step` is that of the evaluation; null is the newest.
const looking = { run: 0, step: null, measure: null, only: "all", sort: "order", least: 0,
  beside: true };

const MEANINGS = {
  kl: "KL(student || teacher), nats",
  forward_kl: "KL(teacher || student), nats",
  log_ratio: "log teacher - log student of the token, nats",
  student_entropy: "student's entropy, nats",
  teacher_entropy: "teacher's entropy, nats",
  top1_agreement: "same best token",
  push: "method: push on the token by the policy gradient (below 0: less likely)",
  loss: "method: what the token adds to the divergence that is learnt",
};

function measuresOf(run) {
  const names = new Map();
  for (const answers of run.samples.answers) for (const answer of answers) {
    if (!answer.tokens) continue;
    for (const group of ["method", "measures"]) for (const name of Object.keys(answer.tokens[group]))
      names.set(`${group}/${name}`,
        MEANINGS[name] ?? (group === "method" ? `method: ${words(name)}` : words(name)));
  }
  return names;
}

function valuesOf(answer, measure) {
  const [group, name] = measure.split("/");
  return answer.tokens?.[group][name] ?? [];
}

// The size that has the full colour: 98 % of the tokens of all evaluations are below it.
function fullSize(run, measure) {
  const sizes = run.samples.answers.flat().flatMap((answer) => valuesOf(answer, measure))
    .filter((value) => value != null).map(Math.abs).sort((a, b) => a - b);
  return sizes[Math.floor(0.98 * (sizes.length - 1))] || sizes.at(-1) || 1;
}

function coloured(value, full) {
  if (value == null) return { class: "token unknown" };
  const share = Math.min(1, Math.abs(value) / full);
  return { class: `token ${value < 0 && share > 0.02 ? "less" : "more"}`,
    "--share": `calc(${share.toFixed(3)} * var(--strength))` };
}

function judged(answer) {
  if (answer.right == null) return "";
  return answer.right ? "✓ right" : "✗ wrong";
}

function tokensTab(runs) {
  looking.run = Math.min(looking.run, runs.length - 1);
  const run = runs[looking.run];
  const { steps, of, answers } = run.samples;
  const box = create("div", { class: "tokens" });
  const left = create("div"), detail = create("aside", { id: "detail", "aria-live": "polite" });
  box.append(left, detail);
  const redraw = () => redrawn(box, () => tokensTab(runs));
  const set = (name) => (value) => { looking[name] = value; redraw(); };
  if (runs.length > 1)
    left.append(create("div", { class: "controls" }, select("Run", runs.map((it, i) => [i, it.name]),
      looking.run, (value) => { looking.run = Number(value); looking.step = null; redraw(); })));
  const measures = measuresOf(run);
  if (!steps.length || !measures.size) {
    left.append(create("p", { class: "note" }, steps.length
      ? "These answers were written by a version that kept no numbers of their tokens."
      : "No answers yet: they are written at each evaluation (--evaluation.samples-shown)."));
    if (!steps.length) return box;
  }
  if (!measures.has(looking.measure))
    looking.measure = ["method/push", "method/loss", "measures/kl"].find((it) => measures.has(it))
      ?? [...measures.keys()][0] ?? "measures/kl";
  let place = steps.indexOf(looking.step);
  if (place < 0) place = steps.length - 1;
  const full = fullSize(run, looking.measure);
  const shown = create("div", { class: "answers" });
  const at = create("output", {});
  const slider = create("input", { type: "range", min: 0, max: steps.length - 1, step: 1,
    value: place, id: "step",
    oninput: (event) => {
      place = Number(event.target.value);
      looking.step = place === steps.length - 1 ? null : steps[place];
      fill();
    } });
  left.append(
    create("div", { class: "controls" },
      select("Colour", [...measures], looking.measure, set("measure")),
      select("Answers", [["all", "all"], ["right", "right"], ["wrong", "wrong"],
        ["changed", "changed from right to wrong or back"]], looking.only, set("only")),
      select("Order", [["order", "as asked"], ["length", "longest first"],
        ["largest", "largest value first"]], looking.sort, set("sort")),
      create("label", {}, "Tokens, at least", create("input", { type: "number", min: 0, size: 5,
        value: looking.least,
        onchange: (event) => set("least")(Number(event.target.value) || 0) })),
      checkbox("beside the first evaluation", looking.beside, set("beside"))),
    create("div", { class: "controls" },
      create("label", { class: "wide" }, "Evaluation after ", at, slider)),
    scaleOf(run, looking.measure, full), shown);
  if (of > steps.length)
    left.append(create("p", { class: "note" }, `${steps.length} of ${of} evaluations are in this page.`));

  function fill() {
    at.textContent = `step ${steps[place].toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", at.textContent);
    const cards = answers[place].map((answer, row) => ({ answer, row, before: answers[0][row] }))
      .filter(({ answer, before }) => passes(answer, before));
    const size = {
      order: () => 0,
      length: ({ answer }) => -lengthOf(answer),
      largest: ({ answer }) => -Math.max(0, ...valuesOf(answer, looking.measure).map(Math.abs)),
    }[looking.sort];
    cards.sort((a, b) => size(a) - size(b));
    const [first, step] = [steps[0], steps[place]];
    shown.replaceChildren(...cards.map((card) => answerCard(card, full, detail, first, step)));
    if (!cards.length) shown.append(create("p", { class: "note" }, "No answer is like that here."));
  }
  fill();
  return box;
}

const lengthOf = (answer) => answer.tokens?.length ?? 0;

function passes(answer, before) {
  if (lengthOf(answer) < looking.least) return false;
  return { all: true, right: answer.right === true, wrong: answer.right === false,
    changed: answer.right != null && answer.right !== before?.right }[looking.only];
}

function scaleOf(run, measure, full) {
  // Not by a rounding's breadth.
  const signed = run.samples.answers.flat()
    .some((answer) => valuesOf(answer, measure).some((value) => value < -0.02 * full));
  const sample = (value) =>
    create("span", coloured(value, full), number(value) + (Math.abs(value) === full ? " or more" : ""));
  const values = [...(signed ? [-full, -full / 2] : []), 0, full / 2, full];
  const samples = values.map(sample);
  if (signed) samples[0].textContent = `${number(-full)} or less`;
  const unknown = create("span", coloured(null, full), "no number");
  return create("div", { class: "scale" }, ...samples, unknown);
}

function answerCard({ answer, before }, full, detail, first, step) {
  const side = (it, step) => create("div", {},
    create("h3", { class: "faint" }, `after step ${step.toLocaleString("en")}  ${judged(it)}`),
    textOf(it, full, detail));
  const both = looking.beside && step !== first && before;
  return create("article", { class: "answer" },
    create("p", { class: "prompt", tabindex: 0 }, answer.prompt),
    answer.answer == null ? null : create("p", { class: "note" }, `expected: ${answer.answer}`),
    create("div", { class: "sides" }, both ? side(before, first) : null, side(answer, step)));
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.getElementById("detail")?.replaceChildren();
});

// One stop for the keyboard; arrows go from token to token.
function textOf(answer, full, detail) {
  const box = create("p", { class: "text" });
  if (!answer.tokens?.text.length) {
    box.append(answer.completion);
    return box;
  }
  const values = valuesOf(answer, looking.measure);
  const spans = answer.tokens.text.map((text, place) => create("span",
    { ...coloured(values[place], full), tabindex: place ? -1 : 0, "data-place": place },
    text || "·"));
  const show = (event) => {
    const place = event.target.dataset?.place;
    if (place === undefined) return;
    document.querySelector(".token.current")?.classList.remove("current");
    event.target.classList.add("current");
    detail.replaceChildren(...detailOf(answer, Number(place)));
  };
  for (const kind of ["mouseover", "focusin", "click"]) box.addEventListener(kind, show);
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = step && spans[Number(event.target.dataset.place) + step];
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    event.preventDefault();
  });
  box.append(...spans);
  if (lengthOf(answer) > spans.length) box.append(create("span", { class: "faint" }, " … (the rest was not looked at)"));
  return box;
}

function detailOf(answer, place) {
  const { text, measures, method, likeliest } = answer.tokens;
  const rows = [...Object.entries(method).map(([name, values]) => [`method: ${words(name)}`, values]),
    ...Object.entries(measures).map(([name, values]) => [words(name), values])]
    .map(([name, values]) => [name, number(values[place])]);
  const first = ([reader]) => (reader === "student" ? 0 : 1);
  const expected = Object.entries(likeliest).sort((a, b) => first(a) - first(b));
  const readers = expected.map(([reader, tokens]) => create("div", {},
    create("p", { class: "note" }, reader === "student" ? "student expected" : `${reader} expected`),
    likeliestTable(tokens[place])));
  return [create("h3", {}, `“${visible(text[place])}”`),
    create("p", { class: "note" }, `token ${place + 1} of ${lengthOf(answer)}`),
    create("div", { class: "columns" }, ...readers, table([], rows, { numbers: [1] }))];
}

const visible = (text) => text.replaceAll("\n", "↵");

function likeliestTable(expected) {
  const rows = expected.map(([text, share, written]) => create("tr",
    { class: written ? "sampled" : null },
    create("td", {}, `“${visible(text)}”`),
    create("td", { class: "number" }, share < 0.0001 ? "<0.01 %" : `${(100 * share).toFixed(2)} %`),
    create("td", {}, create("span", { class: "bar", "--share": share }))));
  return create("table", { class: "likely" }, create("tbody", {}, ...rows));
}
