"""The report as one page that needs nothing else: no network, no script, no other file."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kdcompile import __version__
from kdcompile.bundle import facts, headline, render
from kdcompile.bundle.report import charts, paired, pictures, tiles
from kdcompile.core import escape
from kdcompile.core.report import Report

WIDE = 6  # columns from which a table is a card a row on a tablet too
LONG = 18  # characters of a word that may be broken
SEPARATOR = re.compile(r"(?<=[/_@])(?=[^\s/_@])")


def html(report: Report, examples: Path, metrics: Sequence[Mapping[str, Any]]) -> str:
    """The page of one report.

    Args:
        report: what to show.
        examples: the folder of `example_KIND.npz`: `pixels`, uint8 [H, W, C], and where the task
            has them, over the same area, the densities `student` and `teacher`, float32 [h, w].
        metrics: the lines of `metrics.jsonl`.
    """
    shown = pictures.examples(report, examples)
    return filled(
        "report.html.j2",
        report=report,
        meaning=facts.meaning(report),
        scope=facts.scope(report),
        tone=facts.tone(report),
        tiles=tiles.tiles(report),
        open=tiles.what_is_open(report),
        notes=headline.notes(report),
        warnings=facts.warnings(report),
        charts=charts.charts(report, metrics),
        gates=render.gate_rows(report),
        gate_heads=render.GATE_HEADS,
        paired_heads=paired.heads(report),
        paired=paired.rows(report),
        numbers=render.number_rows(report),
        number_heads=render.NUMBER_HEADS,
        examples=shown,
        legend=pictures.legend(report, shown),
        worst=facts.worst(report),
        worst_heads=facts.worst_heads(report),
        of_records=facts.is_of_records(report),
        progress=facts.progress(report),
        words=facts.words(report),
        metric=charts.metric_words(report),
        parts=render.part_texts(report),
        part_heads=render.part_heads(report),
        further=render.further(report),
        candidates=facts.candidates(report),
        candidate_heads=render.CANDIDATE_HEADS,
        tables=render.tables(report),
        dropped=[(d["name"], d["split"], d["twin"]) for d in report.details.get("dropped") or []],
        dropped_heads=render.DROPPED_HEADS,
        commands=render.reproduction(report),
    )


def filled(template: str, **values: Any) -> str:
    """A page of `templates/` with its values, escaped, and its style.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    environment = Environment(
        loader=PackageLoader("kdcompile.bundle"),
        autoescape=True,
        finalize=lambda value: _whole(escape.visible(value)) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["soft"] = soft
    style = files("kdcompile.bundle").joinpath("templates", "report.css").read_text("utf-8")
    common = {"marks": facts.MARKS, "evidence_words": facts.EVIDENCE, "version": __version__,
              "wide": WIDE, "style": Markup(style)}  # fmt: skip
    return environment.get_template(template).render(**common, **values)


def _whole(text: str) -> str:
    """Text whose numbers stay on the line of their unit."""
    return re.sub(r"(?<=\d) (?=(?:%|ms|MB|mJ|dB)(?!\w))", "\N{NO-BREAK SPACE}", text)


def soft(text: object) -> Markup:
    """Text whose long words may be broken after the separators of paths and identifiers."""
    words = re.split(r"(\s+)", escape.visible(str(text)))
    parts = (SEPARATOR.split(word) if len(word) > LONG else [word] for word in words)
    return Markup("").join(Markup("<wbr>").join(part) for part in parts)
