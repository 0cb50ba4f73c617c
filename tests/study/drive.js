// Runs inside a copy of the report: does what a reader would, and logs what it finds as JSON.
window.addEventListener("load", async () => {
  const found = {};
  const main = document.getElementById("main");
  const until = async (what, test) => {
    for (let i = 0; !test(); i++) {
      if (i > 6000) throw new Error(`waited in vain for ${what}`);
      await new Promise(resolve => setTimeout(resolve, 10));
    }
  };
  const points = () => window.study.main.view.data("points").map(
    ({x, y, us, ds, run_id, family, role}) => ({x, y, us, ds, run_id, family, role}));
  const change = async (what, node) => {
    const before = window.study.main.view;
    node.dispatchEvent(new Event("change"));
    await until(what, () => window.study.main.view && window.study.main.view !== before
      && main.dataset.drawn);
    return points();
  };
  const choose = (id, value) => {
    const select = document.getElementById(id);
    select.value = value;
    return change(id, select);
  };
  try {
    await until("the first plot", () => main.dataset.drawn);
    found.opened = Math.round(performance.now());
    found.first = points();
    found.finding = document.getElementById("finding").textContent;
    found.shots = await choose("shots", "1");
    found.task = await choose("task", "pets");
    found.logit = await choose("axes", "logit");
    await choose("axes", "linear");
    found.shaded = await choose("colour", "fraction");
    await choose("colour", "");
    const box = document.querySelector("#families input");
    box.checked = false;
    found.filtered = await change("family", box);
    found.hidden = box.value;
    found.upstream = await choose("upstream", "textures");
    const view = window.study.main.view, mark = view.data("points").at(-1);
    const canvas = main.querySelector("canvas"), place = canvas.getBoundingClientRect();
    const [left, top] = view.origin();
    const at = {clientX: place.x + left + view.scale("x")(mark.x),
      clientY: place.y + top + view.scale("y")(mark.y), bubbles: true};
    canvas.dispatchEvent(new PointerEvent("pointermove", at));
    await until("the tooltip", () => document.getElementById("vg-tooltip-element")
      ?.classList.contains("visible"));
    found.tooltip = document.getElementById("vg-tooltip-element").textContent;
    const first = () => document.querySelector('[data-table="fits"] tbody tr').textContent;
    const head = [...document.querySelectorAll('[data-table="fits"] th button')].find(
      button => button.textContent === "saturation");
    const unsorted = first();
    head.click();
    found.sorted = [unsorted, first()];
    found.findings = [...document.querySelectorAll("[data-finding]")].map(n => n.textContent);
    const lazy = [...document.querySelectorAll("[data-figure], .panel > div")];
    found.drawnBefore = lazy.filter(node => node.dataset.drawn).length;
    found.blank = [];
    for (const node of document.querySelectorAll("[data-figure], .panels")) {
      node.scrollIntoView();
      const plots = node.dataset.figure ? [node] : [...node.querySelectorAll(".panel > div")];
      await until(node.dataset.figure ?? node.dataset.panels,
        () => plots.slice(0, 1).every(plot => plot.dataset.drawn));
      const canvas = plots[0].querySelector("canvas");
      if (!(canvas?.width >= 100)) found.blank.push(node.dataset.figure);
    }
    found.lazy = lazy.length;
    found.overflow = document.documentElement.scrollWidth - window.innerWidth;
    found.width = window.innerWidth;
  } catch (error) {
    found.error = String(error.stack || error);
  }
  console.log("FOUND " + JSON.stringify(found) + " END");
});
