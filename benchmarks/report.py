"""How results are shown: JSON for machines, Markdown for people, lines for a terminal."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Kind, Measurement, Side, Skipped, Target
from benchmarks.peers import FCGIWRAP_PROCESSES, HTTP_BACKEND, NGINX

JSON_VERSION: Final = 1
HEADINGS: Final = ("", "measure", "mirror", "against", "", "ratio", "target", "")

PAGE: Final = Path(__file__).with_name("page.md")
"""The prose around the table, with the names of `render_page` in braces."""


def render_page(
    results: Sequence[Measurement | Skipped],
    *,
    machine: Mapping[str, str],
    date: str,
    scale: str,
    overrides: Mapping[str, Any],
    notes: Mapping[int, str],
) -> str:
    """Return docs/performance.md."""
    facts = "\n".join(f"* {name}: {value}" for name, value in machine.items())
    named = {"directory": "...", "port": "...", "root": "...", "program": "git-http-backend"}
    return PAGE.read_text().format(
        machine=f"* date: {date}\n* size: {scale}\n{facts}",
        table=render_table(results),
        notes=render_notes(results, notes),
        overrides=_overrides(overrides),
        cgi=FCGIWRAP_PROCESSES,
        nginx=NGINX.format(**named),
        backend=HTTP_BACKEND.format(**named),
    )


def _overrides(overrides: Mapping[str, Any]) -> str:
    if not overrides:
        return "Its configuration is the default's."
    return "Changed: " + ", ".join(f"`{key}: {value}`" for key, value in overrides.items()) + "."


def render_table(results: Sequence[Measurement | Skipped]) -> str:
    """Return the Markdown table."""
    lines = [_row(HEADINGS), _row(["--:", "---", "--:", "---", "--:", "--:", "---", "---"])]
    lines += [_row(cells(each)) for each in results]
    return "\n".join(lines) + "\n"


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def cells(measurement: Measurement | Skipped, *, is_markdown: bool = True) -> list[str]:
    """Return the texts of one line of the table."""
    if isinstance(measurement, Skipped):
        word = "failed" if measurement.is_failure else "skipped"
        return [str(measurement.row), f"{word}: {measurement.reason}", *[""] * 6]
    mark = "**" if is_markdown else ""
    return [
        str(measurement.row),
        measurement.name,
        _figures(measurement, measurement.ours, mark),
        measurement.against,
        _figures(measurement, measurement.theirs, ""),
        "" if measurement.ratio is None else f"{_number(measurement.ratio)}x",
        _target(measurement),
        _verdict(measurement, mark),
    ]


def _figures(measurement: Measurement, side: Side, mark: str) -> str:
    """Write a side's figures; the one that the target is about in bold."""

    def text(name: str, unit: str = "") -> str:
        value = getattr(side, name)
        unit = f" {unit}".rstrip()
        if measurement.target is not None and measurement.judged == name:
            return f"{mark}{_number(value)}{mark}{unit}"
        return f"{_number(value)}{unit}"

    parts = []
    if side.amount is not None:
        parts.append(text("amount", measurement.unit))
    if side.rate is not None and measurement.judged == "rate":
        parts.append(text("rate", measurement.unit.replace("requests", "")).replace(" /s", "/s"))
    if side.p50 is not None and side.p99 is not None:
        parts.append(f"{text('p50')} / {text('p99')} ms")
    elif side.p50 is not None:
        parts.append(text("p50", "ms"))
    return ", ".join(parts)


def _number(value: float) -> str:
    """Write three figures, more of a large number."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.01 else f"{value:.3f}"


def _target(measurement: Measurement) -> str:
    target: Target | None = measurement.target
    if target is None:
        return ""
    text = target.kind.value.format(limit=target.limit, unit=measurement.unit).rstrip()
    if target.kind is Kind.AMOUNT_AT_MOST and measurement.judged in ("p50", "p99"):
        text += f" ({measurement.judged})"
    return text + (f" + {target.plus_ms:g} ms" if target.plus_ms else "")


def _verdict(measurement: Measurement, mark: str) -> str:
    verdict = measurement.verdict
    if verdict is None:
        return ""
    return "met" if verdict.is_met else f"{mark}short by {_number(verdict.short_by)}x{mark}"


def render_notes(results: Sequence[Measurement | Skipped], notes: Mapping[int, str]) -> str:
    """Return the explanations of the rows that are short, and a line that counts them."""
    judged = [each for each in results if isinstance(each, Measurement) and each.verdict]
    short = sorted({each.row for each in judged if not each.verdict.is_met})
    met = sum(each.verdict.is_met for each in judged)
    lines = [f"\n{met} of {len(judged)} targets are met."]
    lines += [f"\n**Row {row}.** {notes[row]}" for row in short if row in notes]
    return "\n".join(lines) + "\n"


def render_json(
    results: Sequence[Measurement | Skipped],
    *,
    machine: Mapping[str, str],
    date: str,
    scale: str,
    overrides: Mapping[str, Any],
) -> str:
    """Return all raw figures."""
    document = {
        "version": JSON_VERSION,
        "date": date,
        "scale": scale,
        "machine": dict(machine),
        "overrides": dict(overrides),
        "results": [_plain(each) for each in results],
    }
    return json.dumps(document, indent=2) + "\n"


def _plain(result: Measurement | Skipped) -> dict[str, Any]:
    plain = asdict(result)
    if isinstance(result, Measurement):
        target, verdict = result.target, result.verdict
        plain["ratio"] = result.ratio
        plain["target"] = None if target is None else {**asdict(target), "kind": target.kind.name}
        plain["met"] = None if verdict is None else verdict.is_met
        plain["short_by"] = None if verdict is None else verdict.short_by
    return plain


def write(path: Path, text: str) -> None:
    """Write a file whose directory may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
