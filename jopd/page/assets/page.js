// The page itself: its tabs, and where it is live its data, asked for again.

const TABS = [["Result", resultTab], ["Tokens", tokensTab], ["Curves", curvesTab],
  ["Profiles", profilesTab], ["Checklist", checklistTab], ["Settings", settingsTab]];
const SECONDS = 5;
const read = JSON.parse(document.getElementById("data").textContent);
let runs = read.runs;
let tab = Math.max(0, TABS.findIndex(([name]) => `#${name.toLowerCase()}` === location.hash));

function drawHeader() {
  document.getElementById("runs").replaceChildren(...runs.map((run, index) =>
    create("span", { class: "run" }, swatch(index), `${run.name} `,
      create("span", { class: "faint" },
        run.finished ? run.method : `${run.method}, step ${run.done} of ${run.steps}`))));
}

function drawTabs() {
  const go = (place) => {
    tab = (place + TABS.length) % TABS.length;
    history.replaceState(null, "", `#${TABS[tab][0].toLowerCase()}`);
    drawTabs();
    drawPanel();
    document.getElementById("tabs").children[tab].focus();
  };
  document.getElementById("tabs").replaceChildren(...TABS.map(([name], place) => create("button", {
    role: "tab", id: `tab-${place}`, "aria-selected": String(place === tab), "aria-controls": "panel",
    tabindex: place === tab ? 0 : -1, onclick: () => go(place),
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) go(tab + step);
    },
  }, name)));
}

function drawPanel() {
  const panel = document.getElementById("panel");
  panel.setAttribute("aria-labelledby", `tab-${tab}`);
  panel.replaceChildren(TABS[tab][1](runs));
}

function draw() {
  drawHeader();
  drawTabs();
  drawPanel();
}

let shown = "";  // of what was asked for last

async function follow() {
  const panel = document.getElementById("panel");
  try {
    const answer = await fetch("data.json");
    const text = answer.ok ? await answer.text() : shown;
    // Whoever has something in hand there is not disturbed: what is new waits.
    const busy = panel !== document.activeElement && panel.contains(document.activeElement);
    if (text !== shown && !busy) {
      shown = text;
      runs = JSON.parse(text).runs;
      const height = window.scrollY;
      drawHeader();
      drawPanel();
      window.scrollTo(0, height);
    }
  } catch { /* the server has ended or the run is being written: the page keeps what it has */ }
  setTimeout(follow, 1000 * SECONDS);
}

draw();
dark.addEventListener("change", draw);
if (read.live) setTimeout(follow, 1000 * SECONDS);
