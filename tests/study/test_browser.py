"""The report in a real browser: a reader's choices change what is drawn, without an error.

`drive.js` is appended to a copy of the page, does what a reader would and logs what it finds; the
page itself knows nothing of it. Needs a Chromium (`apt-get install chromium`), and nothing else.
"""
import json
import pathlib
import re
import shutil
import subprocess
import threading

import numpy as np
import planted_explanation
import planted_tables
import pytest

from big_transfer.study import report
from big_transfer.study.figures import style

BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--enable-logging=stderr")
DRIVER = pathlib.Path(__file__).with_name("drive.js")
pytestmark = pytest.mark.slow


def driven(page, script, folder, *, size="1200,900", seconds=120):
  """Opens a copy of a page with a script appended.

  Returns:
    (what the script logged between FOUND and END, the other lines of the console).
  """
  browser = next(filter(None, map(shutil.which, BROWSERS)), None)
  if browser is None:
    pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
  text, end = page.read_text(), page.read_text().rindex("</body>")
  copy = folder / "driven.html"
  copy.write_text(f"{text[:end]}<script>{script}</script>{text[end:]}")
  process = subprocess.Popen(
      [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={size}",
       copy.as_uri()], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
  watch = threading.Timer(seconds, process.kill)
  watch.start()
  found, console = None, []
  try:
    for line in process.stderr:
      if "CONSOLE" in line:
        answer = re.search("FOUND (.*) END", line)
        if answer:
          found = json.loads(answer[1])
          break
        console.append(line)
  finally:
    watch.cancel()
    process.kill()
    process.wait()
    process.stderr.close()
  assert found is not None, f"nothing found in {seconds} s; console: {console}"
  return found, console


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  folder = tmp_path_factory.mktemp("browser")
  points = planted_tables.make_points()
  tables = planted_tables.make_tables(points)
  tables |= planted_explanation.make(points, tables["spearman"])
  page = report.write(folder / "report.html", points, tables, planted_tables.CENSUS, shots=10,
                      sources={})
  return points, page, folder


@pytest.fixture(scope="module")
def found(study):
  _, page, folder = study
  return driven(page, DRIVER.read_text(), folder)


def drawn_are(points, shown, upstream, task, shots, axes="linear"):
  view = next(view for view in points if (view.cell.upstream, view.cell.task, view.cell.shots)
              == (upstream, task, shots))
  ids_U = points.of_runs("run_id")
  shown = sorted(shown, key=lambda point: point["run_id"])
  order = np.argsort(ids_U[view.run])
  assert [point["run_id"] for point in shown] == ids_U[view.run][order].tolist()
  for name, values, field in (("us", view.us, "x"), ("ds", view.ds, "y")):
    # The page holds accuracies in single precision.
    np.testing.assert_allclose([point[name] for point in shown], values[order], atol=1e-6)
    np.testing.assert_allclose([point[field] for point in shown],
                               style.AXES[axes].forward(values[order]), atol=1e-4)


def test_a_changed_choice_changes_the_points(study, found):
  points, answers = study[0], found[0]
  assert "error" not in answers, answers["error"]
  drawn_are(points, answers["first"], "fractals", "digits", 10)
  drawn_are(points, answers["shots"], "fractals", "digits", 1)
  drawn_are(points, answers["task"], "fractals", "pets", 1)
  drawn_are(points, answers["logit"], "fractals", "pets", 1, axes="logit")
  assert answers["finding"].startswith("Upper hull: error = ")


def test_architectures_can_be_hidden_and_runs_coloured_by_a_setting(study, found):
  points, answers = study[0], found[0]
  assert answers["hidden"] == "ViT"
  left = {point["run_id"] for point in answers["task"] if point["family"] != "ViT"}
  assert {point["run_id"] for point in answers["filtered"]} == left and left
  assert {point["role"] for point in answers["task"]} == {"run"}
  assert {point["role"] for point in answers["shaded"]} == {"shaded"}
  upstreams = dict(zip(points.of_runs("run_id"), points.of_runs("upstream")))
  assert {upstreams[point["run_id"]] for point in answers["upstream"]} == {"textures"}


def test_pointing_at_a_mark_shows_its_run(found):
  assert re.search(r"modelmodel 1e\+05|modelmodel 300000|modelmodel 1e\+06|modelmodel 100000",
                   found[0]["tooltip"])
  assert all(words in found[0]["tooltip"] for words in ("upstream accuracy", "run id", "epochs"))


def test_everything_is_drawn_when_it_comes_into_view_and_no_sooner(found):
  answers = found[0]
  assert answers["drawnBefore"] < answers["lazy"] / 2
  assert answers["blank"] == []
  assert all(answers["findings"])
  assert answers["sorted"][0] != answers["sorted"][1]


def test_the_console_stays_empty(found):
  assert found[1] == []


def test_a_narrow_page_has_nothing_beside_it(study):
  _, page, folder = study
  script = """window.addEventListener("load", () => setTimeout(() => console.log("FOUND "
    + JSON.stringify({width: innerWidth, page: document.documentElement.scrollWidth}) + " END"),
    1500));"""
  answers, _ = driven(page, script, folder, size="500,900")
  assert answers["width"] <= 520 and answers["page"] <= answers["width"]


def test_layers_are_drawn_on_all_axes_and_effects_without_shots_stay(study):
  _, page, folder = study
  script = """window.addEventListener("load", async () => {
    const found = {axes: {}}, room = document.querySelector("#layers .panel > div");
    const choose = (id, value) => {
      document.getElementById(id).value = value;
      document.getElementById(id).dispatchEvent(new Event("change"));
    };
    room.scrollIntoView();
    while (!room.dataset.drawn) await new Promise(resolve => setTimeout(resolve, 10));
    for (const name of ["linear", "log", "logit"]) {
      choose("axes", name);
      await room.plot.draw();
      found.axes[name] = room.plot.view.data("layers").map(({ds, y}) => [ds, y]);
    }
    const lines = () => [...document.querySelectorAll(
      '[data-table="accuracy_effects"] tbody tr')].map(row => row.children[5].textContent);
    found.ten = lines();
    choose("shots", "1");
    found.one = lines();
    console.log("FOUND " + JSON.stringify(found) + " END"); });"""
  answers, console = driven(page, script, folder)
  assert console == []
  for name, pairs in answers["axes"].items():
    ds, places = np.array(pairs).T
    assert len(ds) == sum(blocks + 2 for blocks in planted_explanation.BLOCKS.values())
    np.testing.assert_allclose(places, style.AXES[name].forward(ds), atol=1e-9)
  assert set(answers["ten"]) == {"", "10"} and set(answers["one"]) == {"", "1"}
