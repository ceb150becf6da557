// Along the completion, or over its length: how a profile changes while a run goes on.

const profiling = { name: null };

function profilesTab(runs) {
  const box = create("div");
  const names = new Map();
  for (const run of runs) for (const [where, profiles] of Object.entries(run.profiles))
    for (const [name, profile] of Object.entries(profiles))
      names.set(`${where}|${name}`, `${profile.title}, ${where}`);
  if (!names.size)
    return create("p", { class: "note" }, "No profiles yet: they are written at each evaluation.");
  if (!names.has(profiling.name)) profiling.name = [...names.keys()][0];
  const [where, name] = profiling.name.split("|");
  box.append(create("div", { class: "controls" },
    select("Profile", [...names], profiling.name,
      (value) => { profiling.name = value; redrawn(box, () => profilesTab(runs)); })));
  const shown = runs.filter((run) => run.profiles[where][name]);
  const sizes = shown.flatMap((run) => run.profiles[where][name].value.flat())
    .filter((value) => value != null).map(Math.abs);
  const full = Math.max(...sizes) || 1;
  for (const run of shown) {
    const profile = run.profiles[where][name];
    box.append(create("h2", {}, run.name), heatMap(profile, full),
      create("p", { class: "note" }, `${profile.title}${profile.unit ? `, ${profile.unit}` : ""}; a `
        + `column a step. The full colour is ${amount(full, profile.unit)}; negative values are `
        + "orange and underlined. An empty cell had no token."));
  }
  return box;
}

function heatMap(profile, full) {
  const head = create("tr", {}, create("th", {}, "step"),
    ...profile.step.map((step) => create("th", { scope: "col" }, step.toLocaleString("en"))));
  const rows = profile.bins.map((bin, place) => create("tr", {},
    create("th", { scope: "row" }, bin),
    ...profile.value.map((values) => {
      const value = values[place];
      if (value == null) return create("td");
      return create("td", { class: value < 0 ? "less" : null,
        "--share": `calc(${(Math.abs(value) / full).toFixed(3)} * var(--strength))` },
      shortAmount(value, profile.unit));
    })));
  return create("div", { class: "scroll", tabindex: 0 }, create("table", { class: "heat" },
    create("thead", {}, head), create("tbody", {}, ...rows)));
}

const shortAmount = (value, unit) =>
  String(Number((unit === "%" ? 100 * value : value).toPrecision(2)));
