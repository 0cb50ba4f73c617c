"""Any table of results to points: formats, scales, joins, seeds, and what a mistake says."""
import gzip
import json
import math
import pathlib
import time

import pyarrow as pa
import pytest
from pyarrow import parquet

from big_transfer.study import external, mapping

LAWS = pathlib.Path(__file__).parents[3] / "shared/data/laws"
TIMM = ("us=results-imagenet.top1,model=model,params=results-imagenet.param_count:M,"
        "ds=results-imagenet-a.top1:ImageNet-A|results-imagenet-real.top1:ImageNet-ReaL,"
        "upstream:=ImageNet,family=model:/^[a-z]+/,test_examples:=50000")


def _file(tmp_path, text, name="results.csv"):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)
  return path


def _lines(read):
  return read.points.table().to_pylist()


def _by(read, *names):
  """{(run_id, task): values} of a reading."""
  return {(line["run_id"], line["task"]): tuple(line[name] for name in names) if len(names) > 1
          else line[names[0]] for line in _lines(read)}


LONG = """model,us,task,acc,shots,params
a,80,pets,60,1,"1,013.01"
a,80,cars,30,1,"1,013.01"
b,70.5,pets,50,1,22
b,70.5,cars,,1,22
"""


def test_a_long_table_in_percent_with_thousands_and_missing_values(tmp_path):
  path = _file(tmp_path, LONG)
  read = external.read([path], "us=us,ds=acc,task=task,model=model,shots=shots,params=params:M,"
                       "upstream:=JFT")
  assert _by(read, "us", "ds") == {("a", "pets"): (0.8, 0.6), ("a", "cars"): (0.8, 0.3),
                                   ("b", "pets"): (0.705, 0.5)}
  assert read.points.cells[0] == ("JFT", "cars", None, None, 1)
  assert read.points.runs["parameters"].to_pylist() == [1_013_010_000, 22_000_000]
  assert read.points.runs["run_folder"].to_pylist() == [f"{path}:2", f"{path}:4"]
  assert read.left_out == [{"source": str(path), "task": "cars", "points": 1,
                            "reason": "no accuracy downstream"}]
  census = read.census
  assert (census.finished, census.rows, census.left_out) == (2, 4, {"no accuracy downstream": 1})


def test_the_same_results_as_errors_fractions_parquet_jsonl_and_wide_are_the_same_points(tmp_path):
  rows = [{"m": f"m{i}", "up": 0.3 + i / 10, "pets": 0.5 + i / 20, "cars": i / 10}
          for i in range(5)]
  def text(change):
    return "m\tup\tpets\tcars\n" + "".join(
        "\t".join([row["m"], *(repr(change(row[name])) for name in ("up", "pets", "cars"))]) + "\n"
        for row in rows)
  files = {
      "fractions.tsv": (text(lambda value: value), {}),
      "percent.tsv": (text(lambda value: 100 * value), {}),
      "errors.tsv": (text(lambda value: 1 - value), {"values": "error"}),
      "errors_percent.tsv": (text(lambda value: 100 - 100 * value), {"values": "error"}),
      "rows.jsonl": ("".join(json.dumps(row) + "\n" for row in rows), {}),
      "rows.json": (json.dumps(rows), {})}
  found = {name: _by(external.read([_file(tmp_path, content, name)],
                                   "us=up,ds=pets|cars,model=m", **options), "us", "ds")
           for name, (content, options) in files.items()}
  parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
  found["rows.parquet"] = _by(external.read([tmp_path / "rows.parquet"],
                                            "us=up,ds=pets|cars,model=m"), "us", "ds")
  long = "m,up,t,acc\n" + "".join(f"{row['m']},{row['up']},{task},{row[task]}\n"
                                  for row in rows for task in ("pets", "cars"))
  found["long"] = _by(external.read([_file(tmp_path, long)], "us=up,ds=acc,task=t,model=m"),
                      "us", "ds")
  expected = {(row["m"], task): (row["up"], row[task]) for row in rows
              for task in ("pets", "cars")}
  for name, points in found.items():
    assert points.keys() == expected.keys(), name
    for key, values in points.items():
      assert values == pytest.approx(expected[key], abs=1e-12), name


def test_one_column_can_be_an_error_in_percent_and_another_an_accuracy_with_percent_signs(tmp_path):
  path = _file(tmp_path, "m,top1 err,acc\na,20,60%\nb,0.5,0.4 %\n")
  read = external.read([path], "us=top1 err:error:percent,ds=acc:pets@25,model=m")
  assert _by(read, "us", "ds") == {("a", "pets"): (0.8, 0.6), ("b", "pets"): (0.995, 0.004)}
  assert read.points.cells[0].shots == 25 and not read.census.warnings
  read = external.read([path], "us=top1 err:percent,ds=acc,model=m")
  assert "top1 err was read as an accuracy" in read.census.warnings[0]


def test_integers_first_and_fractions_late_keep_their_values(tmp_path):
  rows = ["m,us,ds"] + [f"m{i},0,0" for i in range(30_000)] + ["last,0.25,0.75"]
  read = external.read([_file(tmp_path, "\n".join(rows) + "\n")], "us=us,ds=ds,model=m")
  assert _by(read, "us", "ds")["last", "ds"] == (0.25, 0.75)


def test_seeds_are_averaged_and_their_standard_error_kept(tmp_path):
  text = "m,us,s,acc\n" + "".join(f"{model},{us},{seed},{acc}\n" for model, us, seed, acc in [
      ("a", 0.8, 0, 0.5), ("a", 0.8, 1, 0.6), ("a", 0.8, 2, 0.7), ("b", 0.7, 0, 0.4)])
  path = _file(tmp_path, text)
  for more in ("", ",seed=s"):
    found = _by(external.read([path], "us=us,ds=acc:t,model=m" + more), "ds", "ds_error",
                "ds_seeds")
    assert found["a", "t"] == pytest.approx((0.6, 0.1 / math.sqrt(3), 3))
    assert found["b", "t"] == (0.4, None, 1)
  path = _file(tmp_path, text + "b,0.7,0,0.5\n")
  with pytest.raises(ValueError, match=r"csv:5 and .*csv:6: seed 0 of task t comes twice"):
    external.read([path], "us=us,ds=acc:t,model=m,seed=s")


def test_one_label_with_several_upstream_accuracies_is_several_runs(tmp_path):
  path = _file(tmp_path, "m,lr,us,t,acc\nViT,1,.8,x,.5\nViT,1,.8,y,.6\nViT,2,.7,x,.4\n")
  read = external.read([path], "us=us,ds=acc,task=t,model=m")
  assert set(_by(read, "ds")) == {("ViT #1", "x"), ("ViT #1", "y"), ("ViT #2", "x")}
  assert set(read.points.runs["model"].to_pylist()) == {"ViT"}
  assert set(_by(external.read([path], "us=us,ds=acc,task=t,run=m|lr"), "ds")) == {
      ("ViT 1", "x"), ("ViT 1", "y"), ("ViT 2", "x")}
  with pytest.raises(ValueError, match=r"one run, but its us is 0\.7 and 0\.8; tell the runs"):
    external.read([path], "us=us,ds=acc,task=t,run=m")
  with pytest.raises(ValueError, match=r"one run, but its lr is 1\.0 and 2\.0"):
    external.read([_file(tmp_path, "m,lr,us,acc\na,1,.8,.5\na,2,.8,.6\n")],
                  "us=us,ds=acc,run=m,lr=lr")


def test_stated_standard_errors_follow_the_scale_of_their_accuracies(tmp_path):
  path = _file(tmp_path, "m,us,use,acc,e,n\na,80,1,60,2,5\nb,70,2,50,3,5\n")
  found = _by(external.read([path], "us=us,us_error=use,ds=acc:t,ds_error=e,ds_seeds=n,model=m"),
              "us_error", "ds_error", "ds_seeds")
  assert found == {("a", "t"): (0.01, 0.02, 5), ("b", "t"): (0.02, 0.03, 5)}
  found = _by(external.read([path], "us=us,test_examples:=1600,ds=acc:t,model=m"), "us_error")
  assert found["a", "t"] == pytest.approx(math.sqrt(0.8 * 0.2 / 1600))


def test_the_last_step_counts_or_every_one_and_upstream_can_be_a_task(tmp_path):
  text = "m,step,t,err,epochs\n" + "".join(
      f"{model},{step},{task},{err},{step / 10}\n" for model in "ab" for step, task, err in [
          (10, "inet", 0.9), (10, "pets", 0.8), (20, "inet", 0.5), (20, "pets", 0.4),
          (30, "pets", 0.1)])
  path = _file(tmp_path, text)
  columns = "us_task:=inet,task=t,ds=err:error,model=m,step=step,epochs=epochs"
  read = external.read([path], columns)
  assert _by(read, "step", "us", "ds", "last", "epochs") == {
      (model, "pets"): (20, 0.5, 0.6, True, 2.0) for model in "ab"}
  assert read.left_out[0]["points"] == 2 and "upstream task" in read.left_out[0]["reason"]
  read = external.read([path], columns, steps="all")
  assert [line["last"] for line in _lines(read)] == [False, True] * 2
  with pytest.raises(ValueError, match="us_task:=inte: no such task; did you mean inet"):
    external.read([path], columns.replace("inet", "inte"))


def test_a_row_without_a_step_is_left_out_beside_others_of_its_run(tmp_path):
  path = _file(tmp_path, "model,step,us,acc\na,1,.2,.3\na,2,.4,.5\na,,.1,.2\nb,,.3,.4\n")
  read = external.read([path], "us=us,ds=acc,model=model,step=step")
  assert [(line["run_id"], line["step"], line["us"]) for line in _lines(read)] == [
      ("a", 2, 0.4), ("b", None, 0.3)]
  assert read.census.left_out == {"no step, in a run with steps": 1}


def test_an_upstream_task_is_measured_in_one_way_and_keeps_its_stated_error(tmp_path):
  rows = "model,task,shots,acc,se\na,inet,{},.5,.02\na,inet,25,.7,.02\na,pets,25,.6,.03\n"
  columns = "us_task:=inet,task=task,ds=acc,ds_error=se,model=model,shots=shots"
  with pytest.raises(ValueError, match="us_task:=inet: runs have it with shots 1 and 25"):
    external.read([_file(tmp_path, rows.format(1))], columns)
  line, = _lines(external.read([_file(tmp_path, rows.format(25))], columns))
  assert line["us"] == pytest.approx(0.6)
  assert line["us_error"] == pytest.approx(0.02 / math.sqrt(2)) and line["ds_error"] == 0.03


def test_a_decimal_comma_is_no_thousands_separator(tmp_path):
  path = _file(tmp_path, 'model,us,acc\na,"0,063",.5\nb,"0,071",.6\n')
  with pytest.raises(ValueError, match="decimals with a point.*got '0,063'"):
    external.read([path], "us=us,ds=acc,model=model")


def test_rows_taken_for_seeds_though_nothing_says_so_are_a_warning(tmp_path):
  path = _file(tmp_path, "model,seed,us,acc\na,1,.5,.3\na,2,.5,.4\nb,1,.6,.5\n")
  doubt, = external.read([path], "us=us,ds=acc,model=model").census.warnings
  assert "1 of the points are" in doubt and f"{path}:2 and {path}:3" in doubt
  assert not external.read([path], "us=us,ds=acc,model=model,seed=seed").census.warnings


def test_numbered_names_are_never_another_runs(tmp_path):
  path = _file(tmp_path, "model,us,acc\nm,.1,.2\nm,.2,.3\nm #1,.3,.4\n")
  read = external.read([path], "us=us,ds=acc,model=model")
  assert [(line["run_id"], line["us"]) for line in _lines(read)] == [
      ("m #1", 0.1), ("m #1 #1", 0.3), ("m #2", 0.2)]


def test_equal_means_are_equal_whatever_the_order_of_their_seeds(tmp_path):
  path = _file(tmp_path, "model,seed,us,acc\n" + "".join(
      f"{model},{seed},{us},{acc}\n" for model, us, accs in (("a", .5, (.1, .2, .3)),
                                                           ("b", .6, (.3, .2, .1)))
      for seed, acc in enumerate(accs)))
  one, other = _lines(external.read([path], "us=us,ds=acc,model=model,seed=seed"))
  assert (.1 + .2 + .3) != (.3 + .2 + .1) and one["ds"] == other["ds"]


def test_files_are_joined_and_a_long_one_may_repeat_its_key(tmp_path):
  wide = _file(tmp_path, "model,top1,size\na,80,5\nb,70,6\nc,60,7\n", "models.csv")
  long = _file(tmp_path, "model,task,top1\na,x,10\na,y,20\nb,x,30\nd,x,40\n", "results-a.csv")
  columns = "us=models.top1,ds=results-a.top1,task=task,model=model,params=size:M"
  read = external.read([wide, long], columns, join="model")
  assert _by(read, "us", "ds", "parameters") == {
      ("a", "x"): (0.8, 0.1, 5_000_000), ("a", "y"): (0.8, 0.2, 5_000_000),
      ("b", "x"): (0.7, 0.3, 6_000_000)}
  assert read.points.runs["run_folder"].to_pylist() == [f"{wide}:2", f"{wide}:3"]
  assert {(line["task"], line["points"], line["reason"]) for line in read.left_out} == {
      (None, 1, "no task"), ("x", 1, "no accuracy upstream")}
  for changed, words in [
      ({"columns": columns.replace("models.top1", "top1")},
       "several files have this column; choose one of models.top1, results-a.top1"),
      ({"join": ["modle"]}, "no column modle; did you mean model"),
      ({"join": []}, "different columns .*--join .*some of model, top1"),
      ({"files": [long, _file(tmp_path, long.read_text(), "more/results-b.csv")]},
       "doesn't tell the rows of .* a is in .*results-a.csv:2 and .*:3; join on model,task"),
      ({"files": [wide, _file(tmp_path, "model,top2\nz,1\n", "other.csv")]},
       "no model is in all of the files: .*begins with a; .*begins with z")]:
    with pytest.raises(ValueError, match=words):
      external.read(**{"files": [wide, long], "columns": columns, "join": ["model"]} | changed)


def test_files_of_the_same_columns_are_stacked_and_can_name_the_task(tmp_path):
  files = [_file(tmp_path, f"m,us,acc\na,80,{acc}\n", f"{task}.csv")
           for task, acc in (("pets", 60), ("cars", 30))]
  read = external.read(files, "us=us,ds=acc,model=m,task=file")
  assert _by(read, "ds") == {("a", "pets"): 0.6, ("a", "cars"): 0.3}


@pytest.mark.parametrize("columns, words", [
    ("us=up,ds=acc,model=m", "us=up: no such column in .*results.csv; did you mean us"),
    ("us=us,ds=acc,modle=m", "'modle' is no role; did you mean model"),
    ("us=us,model=m", "ds is missing"),
    ("ds=acc", "us is missing"),
    ("us=us,ds=bad", "csv:3: column bad: expected a number from 0 to 100 .*got '250'"),
    ("us=us,ds=acc:fraction", "csv:2: column acc: .*from 0 to 1 .a fraction.*got '60'"),
    ("us=bad,ds=acc", "csv:3: column bad: .*got '250'"),
    ("us=word,ds=acc", "csv:3: column word: .*got 'high'"),
    ("us=neg,ds=acc", "csv:2: column neg: .*got '-1'"),
    ("us=mixed,ds=acc", "column mixed: 1 of 3 values are above 1.*mixed:percent or mixed:fract"),
    ("us=us,ds=acc,shots=word", "csv:3: column word: expected a whole number .*, got 'high'"),
    ("us=us,ds=acc,params=half", "csv:2: column half: expected a whole number .*, got '2.5'"),
    ("us=us,ds=acc,params=huge:T", "column huge: expected a whole number up to 9e.18, got '1e30'"),
    ("us=us,ds=acc,fraction=us", "expected a share from 0 to 1"),
    ("us=us,ds=none", "none has both; left out: 3 no accuracy downstream"),
    ("us=us,ds=acc,params=us:Q", "params takes K, M, B or T, got 'Q'"),
    ("us=us,ds=acc:a|mixed:a", "several ds columns of task 'a'"),
    ("us=us,ds=acc,family=m:/(/", "no regular expression"),
    ("us=us,ds=acc,family=m:/(?=a)/", "RE2"),
    ('us="us,ds=acc', "double quote"),
    ("us=us,us=acc,ds=acc", "us is given twice"),
    ("us:=0.5,ds=acc", "us:=VALUE makes all rows alike"),
    ("us=us,ds=acc,upstream=", "lacks the name"),
])
def test_a_mistake_in_a_table_is_one_clear_error(tmp_path, columns, words):
  path = _file(tmp_path, "m,us,acc,bad,word,neg,mixed,half,none,huge\n"
               "a,80,60,10,5,-1,.5,2.5,NA,1e30\nb,70,50,250,high,2,85,3,,1\n"
               "c,60,40,30,6,3,.4,4,-,1\n")
  with pytest.raises(ValueError, match=words):
    external.read([path], columns)


def test_a_task_with_values_out_of_range_is_left_out_and_the_others_go_on(tmp_path):
  path = _file(tmp_path, "m,us,t,acc\na,80,x,60\na,80,y,300\nb,70,x,50\nb,70,y,40\n")
  read = external.read([path], "us=us,ds=acc,task=t,model=m")
  assert _by(read, "ds") == {("a", "x"): 0.6, ("b", "x"): 0.5}
  line, = read.left_out
  assert (line["task"], line["points"]) == ("y", 2) and "csv:3: column acc" in line["reason"]


def test_files_that_are_no_tables_say_so(tmp_path):
  for name, content, words in [("x.xlsx", "x", r"ends in \.csv"), ("x.csv", "a,b\n", "no rows"),
                               ("x.jsonl", "{", "can't be read as a table"),
                               ("x.parquet", "no", "can't be read as a table")]:
    with pytest.raises(ValueError, match=words):
      external.read([_file(tmp_path, content, name)], "us=a,ds=b")
  (tmp_path / "mixed.csv").write_bytes(b"a,b\r\n.1,.2\n.3,.4\r\n")
  with pytest.raises(ValueError, match="lines end in different ways"):
    external.read([tmp_path / "mixed.csv"], "us=a,ds=b")
  with pytest.raises(ValueError, match="no such file"):
    external.read([tmp_path / "none.csv"], "us=a,ds=b")
  with pytest.raises(ValueError, match="given twice"):
    external.read([_file(tmp_path, "a\n1\n")] * 2, "us=a,ds=b")
  with pytest.raises(ValueError, match="--scale: expected one of auto"):
    external.read([_file(tmp_path, "a\n1\n")], "us=a,ds=b", scale="per cent")


def test_separators_byte_marks_and_compression_make_no_difference(tmp_path):
  text = 'model,us,acc\n"a, b",80,60\n\nc,70,50\n'
  expected = {("a, b", "acc"): (0.8, 0.6), ("c", "acc"): (0.7, 0.5)}
  path = tmp_path / "x.csv"
  for content in (text, text.replace("a, b", "a; b").replace(",", ";"),
                  "\ufeff" + text.replace("\n", "\r\n")):
    path.write_bytes(content.encode())
    read = external.read([path], "us=us,ds=acc,model=model")
    assert sorted(_by(read, "us", "ds").values()) == sorted(expected.values())
  (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text.encode()))
  assert _by(external.read([tmp_path / "x.csv.gz"], "us=us,ds=acc,model=model"),
             "us", "ds") == expected


def test_a_row_with_too_few_or_too_many_cells_is_an_error_that_names_it(tmp_path):
  for row in ("a,80", "a,80,60,9"):
    path = _file(tmp_path, f"model,us,acc\nb,70,50\n{row}\n")
    with pytest.raises(ValueError, match="can't be read as a table: .*Line: 3"):
      external.read([path], "us=us,ds=acc,model=model")


def test_fractions_under_a_name_with_a_percent_sign_are_doubted(tmp_path):
  path = _file(tmp_path, "model,us (%),acc\na,0.8,0.6\n")
  read = external.read([path], "us=us (%),ds=acc,model=model")
  assert "us (%) was read as percent" in read.census.warnings[0]
  read = external.read([path], "us=us (%):fraction,ds=acc,model=model")
  assert _by(read, "us")["a", "acc"] == 0.8 and not read.census.warnings


def test_names_with_odd_signs_are_quoted_in_columns_and_safe_in_queries(tmp_path):
  path = _file(tmp_path, 'm,"it\'s, ""US""|: %",a.b\nx\'y,80,60\n', "it's [1].csv")
  read = external.read([path], 'us="it\'s, ""US""|: %",ds=a.b:"pet\'s: all",model=m')
  assert _by(read, "us", "ds") == {("x'y", "pet's: all"): (0.8, 0.6)}
  assert read.points.cells[0].upstream == 'it\'s, "US"|: %'


def test_every_role_fills_a_column_that_exists():
  from big_transfer.study import table
  assert {role.target for role in mapping.ROLES.values() if role.target} <= set(table.RUN_COLUMNS)


def test_published_results_of_timm_are_read_with_their_sizes_and_families():
  files = [LAWS / f"timm/results-imagenet{end}.csv" for end in ("", "-a", "-real")]
  if not files[0].is_file():
    pytest.skip("the published table isn't beside the repository")
  read = external.read(files, TIMM, join=("model", "img_size"))
  assert [cell.task for cell in read.points.cells] == ["ImageNet-A", "ImageNet-ReaL"]
  assert read.points.runs.num_rows == 1556 and len(read.points) == 3111
  giant = [line for line in _lines(read) if line["run_id"] == "eva_giant_patch14_336.clip_ft_in1k"
           and line["task"] == "ImageNet-ReaL"]
  assert giant[0]["parameters"] == 1_013_010_000 and giant[0]["ds"] == pytest.approx(0.91078)
  assert giant[0]["family"] == "eva" and giant[0]["us"] == pytest.approx(0.89466, abs=2e-3)
  # Averaging models at two image sizes would join their rows: 290 labels come more than once.
  assert len(set(read.points.runs["model"].to_pylist())) == 1266


def test_published_results_of_model_soups_are_read_from_jsonl():
  path = LAWS / "model_soups_individual.jsonl"
  if not path.is_file():
    pytest.skip("the published table isn't beside the repository")
  tasks = ("ImageNetV2", "ImageNetR", "ImageNetA", "ObjectNet", "ImageNetSketch")
  read = external.read([path], f"us=ImageNet2p,ds={'|'.join(tasks)},model=model_name")
  first = json.loads(path.read_text().splitlines()[0])
  assert len(read.points) == 72 * 5 and not read.left_out
  assert _by(read, "us", "ds")["model_0", "ImageNetR"] == (first["ImageNet2p"], first["ImageNetR"])


@pytest.mark.slow
def test_a_table_of_625_000_rows_is_read_in_seconds(tmp_path):
  with (tmp_path / "big.csv").open("w") as file:
    file.write("model,us,task,shots,acc\n")
    for run in range(5000):
      file.writelines(f"m{run},{run / 50},t{task},{shots},{(run + task) / 60}\n"
                      for task in range(25) for shots in (1, 5, 10, 25, 100))
  start = time.process_time()
  read = external.read([tmp_path / "big.csv"], "us=us,ds=acc,task=task,shots=shots,model=model")
  assert len(read.points) == 625_000 and len(read.points.cells) == 125
  assert time.process_time() - start < 20
