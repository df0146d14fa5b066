"""The report's section on the final evaluation: metrics, confusion, classes, calibration, mistakes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from upshift.core import units
from upshift.reports import charts
from upshift.reports.fields import Record, count, number, record, records, sequence, text
from upshift.reports.html import Child, Html, label, scrolling_table, tag
from upshift.reports.metrics import metric_rows
from upshift.reports.records import RunRecords

MAX_CELLS = 20
"""Classes up to which the confusion matrix is a table with numbers; above, it is a picture."""
MAX_BESIDE = 10
MAX_LISTED = 10
MAX_FLAT = 3
"""Letters of a class up to which its name lies over its column of the confusion matrix; longer ones stand upright."""
PIXEL_ART = 64
"""Pictures of at most this many pixels a side are enlarged with sharp pixels."""
MAX_PNG_BYTES = 2**20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def final_metrics(run: RunRecords) -> Html | None:
    """Everything known of the trained model's quality; None where nothing is."""
    metrics = {**record(run.result, "metrics"), **record(run.evaluation, "metrics")}
    num_samples = count(run.evaluation, "num_samples") or count(record(run.result, "data"), "num_test")
    shown = _metrics_table(metrics, num_samples)
    if shown is None:
        return None
    return tag(
        "section",
        tag("h2", f"How good the model is on the {text(run.evaluation, 'split') or 'test'} split"),
        *_arranged(run.evaluation, shown),
    )


def _metrics_table(metrics: Record, num_samples: int | None) -> Html | None:
    rows = [
        tag(
            "tr",
            tag("th", label(row.title), scope="row"),
            tag("td", row.value),
            tag("td", row.interval or units.MISSING),
        )
        for row in metric_rows(metrics, num_samples)
    ]
    if not rows:
        return None
    head = tag("tr", [tag("th", name, scope="col") for name in ("Metric", "Value", f"{units.CONFIDENCE} interval")])
    samples = f" ({units.counted(num_samples, 'sample')})" if num_samples else ""
    return scrolling_table(f"Final metrics{samples}", head, rows, name="Final metrics", class_="numbers")


def _calibration(evaluation: Record) -> Html | None:
    bins = [item for item in records(evaluation, "calibration") if count(item, "count")]
    if not bins:
        return None
    return tag(
        "figure",
        charts.calibration_chart(bins),
        tag(
            "figcaption",
            "Calibration: how often the model is right when it is this sure. On the dashed line confidence is"
            f" accuracy. Larger dots hold more samples; bars are {units.CONFIDENCE} intervals.",
        ),
    )


def _arranged(evaluation: Record, metrics: Html) -> list[Html | None]:
    """What is narrow flows into two columns; a confusion table too wide for one stands below, across both."""
    matrix, classes = _matrix(evaluation), records(evaluation, "per_class")
    names = _labels(evaluation, len(matrix))
    narrow, wide = [metrics, _calibration(evaluation)], []
    if 0 < len(matrix) <= MAX_BESIDE:
        narrow.append(_confusion_table(matrix, names))
    elif len(matrix) <= MAX_CELLS:
        wide.append(_confusion_table(matrix, names) if matrix else None)
    else:
        narrow += [_confusion_picture(matrix), _frequent_confusions(matrix, names)]
    if len(classes) <= MAX_CELLS:
        narrow.append(_class_table(classes, "Each class") if classes else None)
    else:
        narrow.append(_worst_classes(classes))
        wide.append(_all_classes(classes))
    if mistakes := records(evaluation, "mistakes"):
        pictures = _mistake_pictures(mistakes)
        (narrow if pictures is None else wide).append(pictures or _mistake_table(mistakes))
    return [tag("div", narrow, class_="flow"), *wide]


def _labels(evaluation: Record, size: int) -> list[str]:
    names = [str(name) for name in sequence(evaluation, "labels")]
    return [names[index] if index < len(names) else str(index) for index in range(size)]


def _matrix(evaluation: Record) -> list[list[int]]:
    """The confusion matrix if it is square and of counts, else nothing."""
    rows = sequence(evaluation, "confusion_matrix")
    whole = all(
        isinstance(row, list)
        and len(row) == len(rows)
        and all(isinstance(cell, int | float) and not isinstance(cell, bool) and cell >= 0 for cell in row)
        for row in rows
    )
    return [[int(cell) for cell in row] for row in rows] if whole else []


def _confusion_picture(matrix: Sequence[Sequence[int]]) -> Html:
    return tag(
        "figure",
        charts.confusion_chart(matrix),
        tag(
            "figcaption",
            f"Confusion matrix of {len(matrix):,} classes, numbered from 0. Blue on the diagonal is right, orange is"
            " mistaken; a deeper colour is a larger share of the true class.",
        ),
    )


def _confusion_table(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Html:
    head = [
        tag("tr", tag("td"), tag("th", "Predicted", scope="colgroup", colspan=len(names))),
        tag("tr", tag("th", "True", scope="col"), [tag("th", label(name), scope="col") for name in names]),
    ]
    body = []
    for row, (name, counts) in enumerate(zip(names, matrix, strict=True)):
        total = sum(counts) or 1
        cells = [
            tag(
                "td",
                f"{cell:,}" if cell else "·",
                class_="right" if row == column else "wrong" if cell else None,
                style=f"--share: {10 + 90 * (cell / total) ** 0.4:.0f}%" if cell else None,
            )
            for column, cell in enumerate(counts)
        ]
        body.append(tag("tr", tag("th", label(name), scope="row"), cells))
    caption = (
        "Confusion matrix, in samples: on the diagonal the model is right. A deeper colour is a larger share of the"
        " true class."
    )
    upright = "" if all(len(name) <= MAX_FLAT for name in names) else " upright"
    return scrolling_table(caption, head, body, name="Confusion matrix", class_=f"confusion{upright}")


def _frequent_confusions(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Html | None:
    pairs = [
        (cell, row, column)
        for row, counts in enumerate(matrix)
        for column, cell in enumerate(counts)
        if cell and row != column
    ]
    if not pairs:
        return None
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    rows = [
        tag(
            "tr",
            tag("td", label(names[row]), tag("small", f" {row}")),
            tag("td", label(names[column]), tag("small", f" {column}")),
            tag("td", f"{cell:,} of {sum(matrix[row]):,}", class_="number"),
        )
        for cell, row, column in pairs[:MAX_LISTED]
    ]
    head = tag("tr", [tag("th", name, scope="col") for name in ("True", "Predicted", "Samples")])
    caption = f"Most frequent confusions ({min(len(pairs), MAX_LISTED)} of {len(pairs):,} pairs)"
    return scrolling_table(caption, head, rows, name="Most frequent confusions")


def _worst_classes(classes: Sequence[Record]) -> Html:
    worst = sorted(classes, key=lambda item: -1.0 if (f1 := number(item, "f1")) is None else f1)
    return _class_table(worst[:MAX_LISTED], f"The {MAX_LISTED} classes with the lowest F1, of {len(classes):,}")


def _all_classes(classes: Sequence[Record]) -> Html:
    caption = f"All {len(classes):,} classes"
    return tag("details", tag("summary", caption), _class_table(classes, caption))


def _class_table(classes: Sequence[Record], caption: str) -> Html:
    rows = []
    largest = max((count(item, "support") or 0 for item in classes), default=0)
    for item in classes:
        support = count(item, "support")
        cells: list[Child] = [tag("th", label(text(item, "label")), scope="row")]
        for key in ("precision", "recall", "f1"):
            value = number(item, key)
            cells.append(tag("td", units.MISSING if value is None else units.percent(value, largest or None)))
        cells.append(tag("td", units.MISSING if support is None else f"{support:,}"))
        rows.append(tag("tr", cells))
    head = tag("tr", [tag("th", name, scope="col") for name in ("Class", "Precision", "Recall", "F1", "Samples")])
    return scrolling_table(caption, head, rows, name=caption, class_="numbers dense")


def _mistake_pictures(mistakes: Sequence[Record]) -> Html | None:
    pictured = [_picture(item) for item in mistakes]
    if any(picture is None for picture in pictured):
        return None
    return tag(
        "section",
        tag("h3", "Mistakes it is most sure of"),
        tag("div", pictured, class_="mistakes"),
    )


def _picture(mistake: Record) -> Html | None:
    encoded = text(mistake, "png")
    side = _png_side(encoded)
    if side is None:
        return None
    true, predicted = text(mistake, "label"), text(mistake, "predicted")
    row, probability = count(mistake, "row"), number(mistake, "probability")
    sure = f" at {units.percent(probability)}" if probability is not None else ""
    return tag(
        "figure",
        tag(
            "img",
            src=f"data:image/png;base64,{encoded}",
            alt=f"Test sample {units.MISSING if row is None else row}: true {true}, predicted {predicted}",
            class_="pixels" if side <= PIXEL_ART else None,
        ),
        tag("figcaption", tag("b", label(true)), tag("span", "taken for ", label(predicted), sure)),
    )


def _png_side(encoded: str) -> int | None:
    """The longer side of a PNG in pixels, from its header; None if the text is not a PNG in base64."""
    if not encoded or len(encoded) > MAX_PNG_BYTES * 4 // 3:
        return None
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    if not content.startswith(PNG_SIGNATURE) or content[12:16] != b"IHDR":
        return None
    return max(int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big"))


def _mistake_table(mistakes: Sequence[Record]) -> Html:
    rows = []
    for item in mistakes:
        row, probability = count(item, "row"), number(item, "probability")
        rows.append(
            tag(
                "tr",
                tag("th", units.MISSING if row is None else f"{row:,}", scope="row"),
                tag("td", label(text(item, "label"))),
                tag("td", label(text(item, "predicted"))),
                tag("td", units.MISSING if probability is None else units.percent(probability), class_="number"),
            )
        )
    head = tag("tr", [tag("th", name, scope="col") for name in ("Test row", "True", "Predicted", "Probability")])
    return scrolling_table(
        "Mistakes it is most sure of", head, rows, name="Mistakes it is most sure of", class_="dense"
    )
