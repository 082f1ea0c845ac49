// Controls of the report page. Numbers are formatted once, in the tables; nothing is formatted here.
const find = (id) => document.getElementById(id);
const spec = JSON.parse(find("spec").textContent);
const { elements: controls } = find("controls");
const boxes = [...document.querySelectorAll("input[name=model]")];
const tables = [...document.querySelectorAll("details.curve")];
const slider = find("eta");
let view;

// The chart from its specification, with the column and scale chosen for the x axis.
async function draw() {
  const option = controls.x.selectedOptions[0];
  for (const { encoding } of spec.layer) {
    encoding.x.field = option.value;
    encoding.x.title = option.text;
    encoding.x.scale = controls.log.checked ? { type: "log" } : { zero: false };
  }
  const tooltip = { disableDefaultStyle: true, formatTooltip };
  const options = { renderer: "svg", actions: false, logLevel: 1, tooltip };
  ({ view } = await vegaEmbed(find("chart"), spec, options));
  update();
}

// The rows of a tooltip that have a value; `escape` makes text of anything.
function formatTooltip(values, escape) {
  const rows = Object.entries(values).filter(([, value]) => value !== "null");
  return `<table>${rows.map((row) => `<tr><td>${row.map(escape).join("</td><td>")}</td></tr>`).join("")}</table>`;
}

// Which models are shown, and the threshold: in the chart, and in the table of models at it.
function update() {
  const hidden = boxes.filter((box) => !box.checked).map((box) => box.value);
  view.signal("hidden", hidden).signal("show_published", controls.published.checked);
  if (slider) {
    view.signal("eta", Number(slider.value));
    const eta = Number(slider.value).toFixed(2);
    find("eta-value").textContent = eta;
    const rows = [];
    for (const table of tables) {
      const row = table.querySelector(`tr[data-eta="${eta}"]`);
      if (!row || hidden.includes(table.dataset.model)) continue;
      const copy = document.createElement("tr"), name = document.createElement("th");
      name.textContent = table.dataset.model;
      copy.append(name, ...[...row.cells].map((cell) => cell.cloneNode(true)));
      rows.push(copy);
    }
    find("at-eta").tBodies[0].replaceChildren(...rows);
  }
  return view.runAsync();
}

function check(checked) {
  for (const box of boxes) box.checked = checked;
  update();
}

document.documentElement.classList.add("ready");
for (const name of ["x", "log"]) controls[name].addEventListener("change", draw);
for (const input of [controls.published, ...boxes]) input.addEventListener("change", update);
controls.all.addEventListener("click", () => check(true));
controls.none.addEventListener("click", () => check(false));
slider?.addEventListener("input", update);

const themes = ["system", "light", "dark"];
find("theme").addEventListener("click", ({ target }) => {
  const theme = themes[(themes.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % 3];
  document.documentElement.dataset.theme = theme;
  target.textContent = `Colours: ${theme}`;
});

let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open], .curve)")];
  for (const node of closed) node.open = true;
});
addEventListener("afterprint", () => { for (const node of closed) node.open = false; });

await draw();
