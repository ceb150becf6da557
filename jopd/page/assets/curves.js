// Everything that was measured against steps, several runs over each other.

const curving = { banded: true, search: "", open: new Map() };
const drawn = [];

function curvesTab(runs) {
  drawn.splice(0).forEach((plot) => plot.destroy());
  const box = create("div");
  const redraw = () => redrawn(box, () => curvesTab(runs));
  const families = familiesOf(runs);
  const search = create("input", { type: "search", value: curving.search, oninput: (event) => {
    curving.search = event.target.value;
    sections.replaceChildren(...filled());
  } });
  const controls = create("div", { class: "controls" }, create("label", {}, "Measures with", search));
  if (families.some((family) => family.length > 1))
    controls.append(checkbox("seeds of the same settings as a band (their mean, from least to most)",
      curving.banded, (value) => { curving.banded = value; redraw(); }));
  const sections = create("div");
  box.append(controls, create("p", { class: "note" }, "A shade is a run's 95 % interval over "
    + "problems; of several seeds it reaches from the least to the most, around their mean."));
  const coarse = runs.filter((run) => run.steps_a_point > 1);
  for (const run of coarse)
    box.append(create("p", { class: "note" },
      `${run.name}: each point of its training steps is the mean of ${run.steps_a_point}.`));
  box.append(sections);

  function filled() {
    drawn.splice(0).forEach((plot) => plot.destroy());
    const groups = new Map();
    for (const [kind, title] of [["evaluation", "Held-out problems"], ["training", "Training steps"]])
      for (const name of new Set(runs.flatMap((run) => Object.keys(run.curves[kind])))) {
        const section = name.includes("/") ? `${title}: ${words(name.split("/")[0])}` : title;
        if (!groups.has(section)) groups.set(section, []);
        groups.get(section).push([kind, name]);
      }
    return [...groups].map(([title, names]) => sectionOf(title, names, runs, families)).filter(Boolean);
  }
  sections.append(...filled());
  return box;
}

// Runs that differ by their seed and their folder alone.
function familiesOf(runs) {
  const families = new Map();
  runs.forEach((run, index) => {
    const { seed, output, ...rest } = run.settings;
    const key = JSON.stringify(Object.entries(rest).sort());
    if (!families.has(key)) families.set(key, []);
    families.get(key).push(index);
  });
  return [...families.values()];
}

function sectionOf(title, names, runs, families) {
  const wanted = names.filter(([kind, name]) => runs.some((run) =>
    run.curves[kind][name]?.title.toLowerCase().includes(curving.search.toLowerCase())));
  if (!wanted.length) return null;
  const grid = create("div", { class: "curves" });
  const open = curving.open.get(title) ?? (!title.includes(":") || curving.search !== "");
  const section = create("details", { open }, create("summary", {}, `${title} (${wanted.length})`), grid);
  const fill = () => {
    if (section.open && !grid.children.length)
      grid.append(...wanted.map(([kind, name]) => figureOf(kind, name, runs, families)));
  };
  section.addEventListener("toggle", () => { curving.open.set(title, section.open); fill(); });
  // What is on no screen yet has no width.
  requestAnimationFrame(fill);
  return section;
}

function figureOf(kind, name, runs, families) {
  const lines = linesOf(kind, name, runs, families);
  const first = runs.find((run) => run.curves[kind][name]).curves[kind][name];
  const unit = first.unit;
  const caption = create("figcaption", { "aria-live": "off" });
  const space = create("div");
  const figure = create("figure", {},
    create("h3", {}, unit ? `${first.title} (${unit})` : first.title), space, caption);
  const say = (step) => {
    const parts = lines.map((line) => {
      const place = step == null ? line.step.length - 1 : line.step.indexOf(step);
      const values = ["value", "low", "high"].map((it) => amount(line[it]?.[place], unit));
      const spread = line.low?.[place] == null ? "" : ` [${values[1]}, ${values[2]}]`;
      const when = step == null && !line.teacher ? ` after step ${line.step[place]}` : "";
      return place < 0 ? null : `${lines.length > 1 ? `${line.name}: ` : ""}${values[0]}${spread}${when}`;
    }).filter(Boolean);
    caption.textContent = `${step == null ? "" : `step ${step}: `}${parts.join("; ")}`;
  };
  say(null);
  requestAnimationFrame(() => drawn.push(plotOf(lines, unit, space, say)));
  return figure;
}

function linesOf(kind, name, runs, families) {
  const lines = [];
  for (const family of families) {
    const curves = family.map((index) => runs[index].curves[kind][name]).filter(Boolean);
    if (!curves.length) continue;
    if (family.length > 1 && curving.banded) {
      lines.push({ ...meanOf(curves), style: family[0], name: `${curves.length} seeds of ${runs[family[0]].name}` });
      continue;
    }
    for (const index of family) {
      const curve = runs[index].curves[kind][name];
      const of = runs.length > 1 ? runs[index].name : "student";
      if (curve) lines.push({ ...curve, style: index, name: of });
    }
  }
  const teachers = kind === "evaluation" ? families.map(([index]) => [index, runs[index].teacher[name]]) : [];
  for (const [index, value] of teachers) {
    const step = runs[index].curves.evaluation[name]?.step;
    if (value != null && step)
      lines.push({ step, value: step.map(() => value), style: index, teacher: true,
        name: runs.length > 1 ? `teacher of ${runs[index].name}` : "teacher" });
  }
  return lines;
}

function meanOf(curves) {
  const [first, ...others] = curves;
  const step = first.step.filter((it) => others.every((curve) => curve.step.includes(it)));
  const at = step.map((it) => curves.map((curve) => curve.value[curve.step.indexOf(it)])
    .filter((value) => value != null));
  const of = (f) => at.map((values) => (values.length ? f(values) : null));
  return { step, value: of((values) => values.reduce((a, b) => a + b, 0) / values.length),
    low: of((values) => Math.min(...values)), high: of((values) => Math.max(...values)) };
}

function plotOf(lines, unit, space, say) {
  const steps = [...new Set(lines.flatMap((line) => line.step))].sort((a, b) => a - b);
  const factor = unit === "%" ? 100 : 1;
  const column = (line, name) => {
    const by = new Map(line.step.map((step, place) => [step, line[name][place]]));
    return steps.map((step) => (by.get(step) == null ? undefined : factor * by.get(step)));
  };
  const data = [steps], series = [{}], bands = [];
  for (const line of lines) {
    const { colour, dash } = styleOf(line.style);
    const points = { show: steps.length < 40 && !line.teacher, size: 5 };
    data.push(column(line, "value"));
    series.push({ stroke: colour, width: line.teacher ? 1 : 2, dash: line.teacher ? [2, 4] : dash,
      points, spanGaps: true });
    if (!line.low) continue;
    for (const name of ["high", "low"]) {
      data.push(column(line, name));
      series.push({ stroke: "transparent", points: { show: false }, spanGaps: true });
    }
    bands.push({ series: [data.length - 2, data.length - 1], fill: `${colour}33` });
  }
  const look = getComputedStyle(document.documentElement);
  const ink = look.getPropertyValue("--faint"), faint = look.getPropertyValue("--line");
  const axis = { stroke: ink, grid: { stroke: faint, width: 1 }, ticks: { stroke: faint } };
  const plot = new uPlot({
    width: Math.max(200, space.clientWidth), height: 200, series, bands, legend: { show: false },
    scales: { x: { time: false } },
    axes: [axis, { ...axis, size: 70 }],
    cursor: { y: false, drag: { x: true, y: false } },
    hooks: { setCursor: [(plot) => say(plot.cursor.idx == null ? null : steps[plot.cursor.idx])] },
  }, data, space);
  new ResizeObserver(() => {
    if (space.clientWidth && space.clientWidth !== plot.width)
      plot.setSize({ width: space.clientWidth, height: 200 });
  }).observe(space);
  return plot;
}
