// What a run came to, the survey's checklist, and what was set.

function resultTab(runs) {
  const header = ["held-out problems", "before", "after", "teacher", "problems"];
  return create("div", {}, ...runs.flatMap((run) => [
    create("h2", {}, run.name),
    create("p", { class: "note" }, `method ${run.method}, preset ${run.preset}; `
      + (run.finished ? `finished after ${run.steps} steps` : `step ${run.done} of ${run.steps}`)),
    create("ul", {}, ...run.findings.map((sentence) => create("li", {}, sentence))),
    table(header, run.result),
    run.why.length ? create("details", {}, create("summary", {}, "On the student's answers"),
      table(["", ...header.slice(1)], run.why)) : null,
    create("p", { class: "note" }, "Brackets: 95 % intervals over problems, each number by itself."),
  ].filter(Boolean)));
}

function checklistTab(runs) {
  const written = runs.filter((run) => run.checklist.length);
  if (!written.length)
    return create("p", { class: "note" }, "The checklist is written when a run has ended.");
  return create("div", {}, ...written[0].checklist.flatMap((group, place) => {
    const keys = new Set(written.flatMap((run) => run.checklist[place].items.map(([key]) => key)));
    const of = (run, key) => run.checklist[place].items.find(([name]) => name === key)?.[1] ?? "";
    const header = written.length > 1 ? ["", ...written.map((run) => run.name)] : [];
    return [create("h2", {}, group.title),
      table(header, [...keys].map((key) => [key, ...written.map((run) => of(run, key))]))];
  }));
}

function settingsTab(runs) {
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
  const row = (key) => [key, ...runs.map((run) => run.settings[key] ?? "(not there)")];
  const header = ["setting", ...runs.map((run) => run.name)];
  const differing = keys.filter((key) => new Set(runs.map((run) => run.settings[key])).size > 1);
  const parts = [];
  if (runs.length > 1)
    parts.push(create("h2", {}, "What differs"), differing.length
      ? table(header, differing.map(row))
      : create("p", {}, "Nothing: the same settings in several folders."));
  return create("div", {}, ...parts, create("h2", {}, "All settings"), table(header, keys.map(row)));
}
