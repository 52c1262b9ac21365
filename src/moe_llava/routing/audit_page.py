"""The audit on one page."""

import html

from moe_llava.routing.audit import EFFECT, NONE, NOT_FOUND, SMALL, Audit, Test, answer
from moe_llava.routing.compare import ALL
from moe_llava.routing.page import Bar, intervals_figure, page, splits_table, table
from moe_llava.routing.similarity import Similarity

_MATRIX = 16  # experts up to which every pair is shown


def audit_page(result: Audit, *, model: str, data: str, dense: str | None) -> str:
    """The whole page: answer, tests, the same by modality and question type, likeness of the experts."""
    twin = f", against its dense twin <code>{html.escape(dense)}</code>" if dense else ""
    body = [
        "<h1>Does the mixture do anything?</h1>",
        f"<p class=note><code>{html.escape(model)}</code> on {result.n:,} answers of <code>{html.escape(data)}</code>"
        f"{twin}. As it is, {100 * result.accuracy:.2f} % are right; "
        f"an answer has {result.log_probability:.4f} nats.</p>",
        f"<p class=answer>{html.escape(answer(result))}</p>",
        "<h2>What happens to the answers with …</h2>",
        _tests(result),
        "<h3>Change in how likely the reference answers are</h3>",
        _figure(result, "log_probability", 1.0, "change of log-probability, nats an answer (left: worse without)"),
        "<h3>Change in how many answers are right</h3>",
        _figure(result, "accuracy", 100.0, "change of accuracy, percentage points (left: worse without)"),
        f"<p class=note>Dots are means, lines bootstrap intervals over whole images that hold for all tests together "
        f"with 95 % (each alone with {100 * result.confidence:.2f} %); orange where they exclude 0.</p>",
        "<h2>By modality and question type</h2>",
        splits_table({test.title: test.differences for test in result.tests if not test.skipped}),
        "<h2>How alike the experts are</h2>",
        _similarity(result.similarity),
    ]
    return page("Does the mixture do anything?", "\n".join(body))


def _tests(result: Audit) -> str:
    rows = [
        [
            f"{html.escape(test.title)}<br><span class=note>{html.escape(test.asks)}</span>",
            f'<span class="verdict {_colour(test)}">{test.verdict}</span>',
            html.escape(test.sentence),
        ]
        for test in result.tests
    ]
    return table(["", "verdict", "in words"], rows, stacks=True)


def _colour(test: Test) -> str:
    return {EFFECT: "effect", SMALL: "effect", NONE: "quiet", NOT_FOUND: "quiet"}.get(test.verdict, "")


def _figure(result: Audit, name: str, scale: float, unit: str) -> str:
    found = [(test.title, getattr(test.differences[ALL], name)) for test in result.tests if not test.skipped]
    return intervals_figure([Bar(title, interval) for title, interval in found if interval], unit, scale)


def _similarity(layers: dict[int, Similarity]) -> str:
    rows = []
    for index, one in layers.items():
        figures = one.as_dict()
        cells = [str(index), "yes" if one.identical else "no"]
        for name in ("cosine", "cka"):
            cells.append(f"{figures[name]['mean']:.4f} ({figures[name]['min']:.4f} to {figures[name]['max']:.4f})")
        rows.append([*cells, f"{100 * one.spread:.2f} %"])
    head = ["layer", "identical", "cosine of weights", "CKA of outputs", "outputs differ from their mean by"]
    text = table(head, rows, numbers={2, 3, 4}, caption="Mean over pairs of experts (least to largest).")
    few = {index: one for index, one in layers.items() if 1 < len(one.cka) <= _MATRIX and not one.identical}
    return text + "".join(_matrix(index, one) for index, one in few.items())


def _matrix(index: int, one: Similarity) -> str:
    rows = [[f"expert {number}", *(f"{value:.3f}" for value in line)] for number, line in enumerate(one.cka.tolist())]
    head = [f"CKA, layer {index}", *(f"{number}" for number in range(len(one.cka)))]
    return table(head, rows, numbers=set(range(1, len(head))))
