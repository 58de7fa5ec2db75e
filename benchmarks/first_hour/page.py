"""The page of a first hour: what was found, in tables that read without the JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_page(result: Path) -> Path:
    """`<result>.md` beside a result file."""
    content = json.loads(result.read_text())
    page = result.with_suffix(".md")
    page.write_text("\n".join(_lines(content)) + "\n", encoding="utf-8")
    return page


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    ran = content["ran"]
    yield f"# The first hour on {content['device_name']}"
    yield ""
    yield f"{ran['ended']}, commit {ran['commit'][:12]}, `{ran['command']}`"
    yield ""
    yield f"**Stopped at the first lie.** {content['lie']}" if content["lie"] else "Nothing was found untrue."
    for name, figures in content["parts"].items():
        yield from ("", f"## {name[0].upper()}{name[1:]}", "")
        yield from _of(figures)


def _of(figures: Mapping[str, Any]) -> Iterator[str]:
    """Rows as a table, everything else as a list."""
    for key, value in figures.items():
        if key == "rows" and isinstance(value, list):
            yield from ("", *_table(value))
        elif isinstance(value, Mapping):
            yield f"- {key}"
            yield from (f"  - {inner}: {_text(_named(each))}" for inner, each in value.items())
        else:
            yield f"- {key}: {_text(value)}"


def _named(value: Any) -> Any:
    """Of what holds a list of backends only those that run there."""
    if isinstance(value, Mapping) and "backends" in value:
        able = [each["name"] for each in value["backends"] if each["reason"] is None]
        return f"auto is {value['auto']}, of {', '.join(able)}"
    return value


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = list(
        dict.fromkeys(name for row in rows for name, each in row.items() if not isinstance(each, dict))
    )
    yield f"| {' | '.join(names)} |"
    yield f"|{' --- |' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(_text(row.get(name, '')) for name in names)} |"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/")
