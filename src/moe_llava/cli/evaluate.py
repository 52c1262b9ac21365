"""The verbs that measure answers."""

import argparse
import json
from pathlib import Path

from moe_llava.cli.verbs import Verbs, console


def add_to(verbs: Verbs) -> None:
    command = verbs.add("eval", run_eval, "Ask a model benchmarks or your own questions; score; compare two runs.")
    command.add_argument("model", nargs="?", help="folder of a checkpoint, or a hub id")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--benchmark", help="comma-separated names, such as pope,mme")
    what.add_argument("--questions", help="your own: JSONL of id, question, answer, image")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"), help="--out folders of two earlier runs")
    command.add_argument("--data", help="folder with the benchmarks' own files, one folder each")
    command.add_argument("--images", help="folder of the images of --questions; by default theirs")
    command.add_argument("--out", help="folder for predictions.jsonl and scores.json; of --compare, for the chart")
    command.add_argument("--limit", type=positive, help="only the first so many questions (benchmarks: no score)")
    command.add_argument("--max-new-tokens", type=positive, help="by default the benchmark's own; 16 for --questions")
    command.add_argument("--batch-size", type=positive, default=256, help="most questions at once")
    command.add_argument(
        "--preprocessing",
        choices=("model", "crop"),
        help="of images: as the checkpoint says, or cut to the centre; by default as the official scripts do",
    )
    command.add_argument("--quantize", choices=("int8", "int4"), help="hold the weights in 8 or 4 bits")
    command.add_argument("--judge-url", help="OpenAI-compatible endpoint; its key in MOE_LLAVA_JUDGE_KEY")
    command.add_argument("--judge-model", help="name of the judge there")
    command.add_argument("--judge-runs", type=positive, default=1, help="how often every answer is judged")
    command.add_argument("--json", action="store_true")

    command = verbs.add("score", run_score, "Score predictions by a benchmark's official rules.")
    command.add_argument("name")
    command.add_argument("--predictions", required=True)
    command.add_argument("--data", required=True, help="folder in the benchmark's official layout")
    command.add_argument("--upload", metavar="OUT", help="write the file for its server or official tool; no score")
    command.add_argument("--json", action="store_true")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def run_eval(options: argparse.Namespace) -> int | None:
    if options.compare:
        return run_compare(options)
    from moe_llava.evaluate.command import Settings, evaluate, show

    required = {"a model": options.model, "--out": options.out}
    if options.benchmark:
        required["--data"] = options.data
    if missing := [name for name, value in required.items() if not value]:
        raise ValueError(f"eval needs {' and '.join(missing)}")
    settings = Settings(
        limit=options.limit,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        preprocessing=options.preprocessing,
        judge_url=options.judge_url,
        judge_model=options.judge_model,
        judge_runs=options.judge_runs,
        quantize=options.quantize,
    )
    outcomes = evaluate(
        options.model,
        Path(options.out),
        settings,
        benchmarks=options.benchmark,
        data=Path(options.data) if options.data else None,
        questions=options.questions,
        images=options.images,
    )
    if options.json:
        if outcomes:
            print(json.dumps({outcome.scores["benchmark"]: outcome.scores for outcome in outcomes}, indent=2))
    elif outcomes:
        show(outcomes, options.model, console)
    return None


def run_compare(options: argparse.Namespace) -> int | None:
    from moe_llava.evaluate import compare
    from moe_llava.evaluate.scores.report import columns

    first, second = map(Path, options.compare)
    comparisons = compare.compare(first, second)
    if options.out:
        compare.write(comparisons, first, second, Path(options.out))
    if options.json:
        print(json.dumps(compare.as_json(comparisons, first, second), indent=2))
    else:
        console.print(columns(compare.rows(comparisons)), markup=False, highlight=False)
    return None


def run_score(options: argparse.Namespace) -> int | None:
    from moe_llava.evaluate.scores import score, write_upload

    if options.upload:
        write_upload(options.name, Path(options.predictions), Path(options.data), Path(options.upload))
        console.print(json.dumps({"upload": options.upload}) if options.json else options.upload, markup=False)
        return None
    report = score(options.name, Path(options.predictions), Path(options.data))
    if options.json:
        print(json.dumps(report.figures, indent=2))
    else:
        console.print(report.text(), markup=False, highlight=False)
    return None
