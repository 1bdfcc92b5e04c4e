"""The content of deploy/Dockerfile: stages, the environment of each instruction, the files of an image."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "deploy" / "Dockerfile").read_text()
# Instructions with their continuations on one line, without comments.
INSTRUCTIONS = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
STAGES = {
    stage.split()[3]: stage.splitlines()
    for stage in re.split(r"^(?=FROM )", "\n".join(INSTRUCTIONS), flags=re.MULTILINE)[1:]
}
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def copied(stage: str) -> list[str]:
    """Return the sources of a stage's COPY instructions."""
    return [source for line in STAGES[stage] if line.startswith("COPY ") for source in line.split()[1:-1]]


def environment(stage: str, *, before: str | None = None) -> dict[str, str]:
    """Return the variables of a stage's ENV instructions: of all of them, or of those before an instruction."""
    lines = STAGES[stage] if before is None else STAGES[stage][: STAGES[stage].index(before)]
    found: dict[str, str] = {}
    for line in lines:
        if line.startswith("ENV "):
            found |= dict(word.split("=", 1) for word in line.split()[1:])
    return found


def working_directory(stage: str) -> PurePosixPath:
    """Return the working directory of a stage's containers."""
    (found,) = [line.split()[1] for line in STAGES[stage] if line.startswith("WORKDIR ")]
    return PurePosixPath(found)


def contents(stage: str) -> dict[str, Path]:
    """Return the files of the checkout in an image, by their path in the image."""
    found: dict[str, Path] = {}
    for line in STAGES[stage]:
        if not line.startswith("COPY "):
            continue
        *sources, target = line.split()[1:]
        for source in sources:
            path = ROOT / source
            folder = working_directory(stage) / target
            for file in [path] if path.is_file() else sorted(path.rglob("*")):
                name = file.name if path.is_file() else file.relative_to(path)
                if file.is_file() and reaches_the_build(str(file.relative_to(ROOT))):
                    found[str(folder / name)] = file
    return found


def reaches_the_build(path: str) -> bool:
    """Return whether .dockerignore admits a file. The last line that matches it or a parent folder decides."""
    reaches = True
    names = [str(each) for each in (PurePosixPath(path), *PurePosixPath(path).parents)]
    for line in IGNORED:
        if any(_pattern(line.removeprefix("!")).fullmatch(name) for name in names):
            reaches = line.startswith("!")
    return reaches


def _pattern(line: str) -> re.Pattern[str]:
    """Return the regular expression of a Docker pattern: from the root, ** for any folders, * and ? within a name."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", line.strip("/"))
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meanings.get(part, re.escape(part)) for part in parts))
