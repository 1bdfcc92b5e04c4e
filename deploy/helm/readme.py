"""Write the table of values in the chart's README.md from the comments in its values.yaml.

    python deploy/helm/readme.py

A comment that begins with `# --` describes the key below it, and may continue on more lines. The table is between two
markers; the text around it is written by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent / "deeplab-triton"
README = CHART / "README.md"
BEGIN, END = "<!-- values: written by deploy/helm/readme.py -->", "<!-- end of values -->"
_KEY = re.compile(r"( *)([A-Za-z][A-Za-z0-9]*):")
_COMMENT = re.compile(r" *# ?(.*)")


class UndescribedError(Exception):
    """A key has no description; the message names it."""


def table(values: str) -> str:
    """Return the Markdown table of a values.yaml.

    Raises:
        UndescribedError: A key that holds no other keys has no description.
    """
    defaults = yaml.safe_load(values)
    rows = ["| value | default | description |", "|---|---|---|"]
    path: list[str] = []
    description: list[str] = []
    described_above = -1  # indentation of a described key, whose default is everything below it
    for line in values.splitlines():
        comment, key = _COMMENT.fullmatch(line), _KEY.match(line)
        if comment is not None:
            text = comment[1]
            description = [text[3:]] if text.startswith("-- ") else [*description, text] if description else []
        elif key is not None:
            indent = len(key[1])
            if 0 <= described_above < indent:
                continue
            described_above = -1
            path[indent // 2 :] = [key[2]]
            if description:
                described_above = indent
                default = json.dumps(_at(defaults, path))
                rows.append(f"| `{'.'.join(path)}` | `{default}` | {' '.join(description)} |")
            elif line.rstrip() != f"{key[1]}{key[2]}:":
                raise UndescribedError(
                    f"values.yaml: {'.'.join(path)} has no `# --` comment; add one that describes it"
                )
            description = []
        elif not line.strip():
            description = []
    return "\n".join(rows)


def readme(current: str, values: str) -> str:
    """Return a README.md with a new table."""
    head, _, rest = current.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{table(values)}\n\n{END}{tail}"


def _at(values: Any, path: list[str]) -> Any:  # noqa: ANN401 - a YAML file may hold anything
    for key in path:
        values = values[key]
    return values


if __name__ == "__main__":
    README.write_text(
        readme(README.read_text(encoding="utf-8"), (CHART / "values.yaml").read_text(encoding="utf-8")),
        encoding="utf-8",
    )
