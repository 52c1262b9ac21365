"""MMBench and MMBench-CN: local scoring by exact matching as VLMEvalKit does it, and the upload for the test server.

A question stands in the file once for each rotation of its options: rows whose index is the same modulo a million.
"""

import csv
import io
import string
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

from moe_llava.evaluate.scores.files import locate, read_answers, read_text
from moe_llava.evaluate.scores.ids import check_ids, check_unique
from moe_llava.evaluate.scores.option_letter import infer_option
from moe_llava.evaluate.scores.report import ScoreReport, percent
from moe_llava.evaluate.scores.xlsx import write_sheet

ENGLISH = ("mmbench_dev_20230712.tsv", "mmbench_dev_en_20231003.tsv", "mmbench_test_20230712.tsv")
CHINESE = ("mmbench_dev_cn_20231003.tsv", "mmbench_test_cn_20231003.tsv")
ROTATION = 1_000_000
NOT_UPLOADED = frozenset({"hint", "category", "source", "image", "comment", "l2-category"})
PREDICTION_COLUMN = 6
# What pandas, which reads the file officially, takes for an empty cell: an option "None" does not exist.
_NOT_A_VALUE = "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null"
EMPTY = frozenset(_NOT_A_VALUE.split("|"))

Cells = dict[str, str]


def score(predictions: Path, data: Path, names: tuple[str, ...] = ENGLISH) -> ScoreReport:
    """Score the first of `names` in `data`; an answer from which no option can be inferred is wrong.

    `circular` is the official figure: a question counts if all its rotations are right. `vanilla` looks at unrotated
    rows alone, `all_rotations` at every row; neither compares with a published circular figure.

    Raises:
        ValueError: a file is malformed, has no `answer` column, or a row is missing, doubled or unknown.
    """
    source = locate(data, *names)
    columns, table = read_table(source)
    if "answer" not in columns:
        raise ValueError(f"{source} has no answers; write the file for the server (--upload), or give the dev split")
    texts = _texts(predictions, table, source)
    hits = {index: infer_option(texts[index], _options(row)) == row["answer"] for index, row in table.items()}
    groups: dict[int, list[bool]] = defaultdict(list)
    for index, hit in hits.items():
        groups[int(index) % ROTATION].append(hit)
    report = _report(
        {
            "circular": [all(group) for group in groups.values()],
            "vanilla": [hit for index, hit in hits.items() if int(index) < ROTATION],
            "all_rotations": list(hits.values()),
        }
    )
    return replace(report, marks={str(index): float(all(group)) for index, group in groups.items()})


def write_upload(predictions: Path, data: Path, out: Path, names: tuple[str, ...] = ENGLISH) -> None:
    """Write the spreadsheet (.xlsx) for the test server: the file without its long columns, answers as column 7.

    Cells equal those of the original's converter; the bytes cannot, as its file records when it was written.

    Raises:
        ValueError: a file is malformed, or a row is missing, doubled or unknown.
    """
    source = locate(data, *names)
    columns, table = read_table(source)
    texts = _texts(predictions, table, source)
    kept = [column for column in columns if column not in NOT_UPLOADED]
    header = [*kept[:PREDICTION_COLUMN], "prediction", *kept[PREDICTION_COLUMN:]]
    rows: list[list[str | int]] = [[*header]]
    for index, row in table.items():
        cells = {**row, "prediction": texts[index]}
        rows.append([int(cells[column]) if column == "index" else cells[column] for column in header])
    write_sheet(out, rows)


score_cn = partial(score, names=CHINESE)
write_upload_cn = partial(write_upload, names=CHINESE)


def read_table(source: Path) -> tuple[list[str], dict[str, Cells]]:
    """Return the column names and the rows by `index` of an MMBench file; empty cells are "".

    Raises:
        ValueError: the file has no `index` column, an index is not a number, or one occurs twice.
    """
    limit = csv.field_size_limit(2**31 - 1)  # images are base64 cells
    try:
        reader = csv.DictReader(io.StringIO(read_text(source), newline=""), delimiter="\t", restval="")
        rows = [{name: "" if cell in EMPTY else cell for name, cell in row.items()} for row in reader]
    finally:
        csv.field_size_limit(limit)
    columns = list(reader.fieldnames or ())
    if "index" not in columns or not all(row["index"].isdecimal() for row in rows):
        raise ValueError(f"{source} is not an MMBench file: it needs tab-separated columns, `index` holding numbers")
    check_unique((row["index"] for row in rows), source)
    return columns, {row["index"]: row for row in rows}


def _texts(predictions: Path, table: dict[str, Cells], source: Path) -> dict[str, str]:
    rows = read_answers(predictions)
    check_ids((str(row["question_id"]) for row in rows), table, predictions, source)
    return {str(row["question_id"]): row["text"] for row in rows}


def _options(row: Cells) -> Cells:
    return {letter: row[letter] for letter in string.ascii_uppercase if row.get(letter)}


def _report(hits: dict[str, list[bool]]) -> ScoreReport:
    figures = {name: percent(sum(of), len(of)) for name, of in hits.items()}
    table = [["scoring", "n", "correct", "accuracy"]]
    table += [[name, str(len(of)), str(sum(of)), f"{figures[name]:.2f}"] for name, of in hits.items()]
    return ScoreReport(figures=figures, table=table, n=len(hits["all_rotations"]))
