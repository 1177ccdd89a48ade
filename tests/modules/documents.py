"""The pages of the documentation, taken apart: fenced blocks, commands, links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_PROGRAM = re.compile(r"(python|pip|make|pytest|wandb|ray|git|gumbelrl-\w+) ")
_FILE = re.compile(r"# ([\w./-]+\.(?:py|ya?ml))\b")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        language: what stands behind the fence, or "".
        text: its lines, without the fences.
        line: of the page, where it begins.
    """

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The name of the file that it is the content of: its first line says so."""
        found = _FILE.match(self.text)
        return found[1] if found else None


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found, language, lines, start = [], None, [], 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            if language is None:
                language, lines, start = line[3:].strip(), [], number + 1
            else:
                found.append(Block(language, "\n".join(lines), start))
                language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{page.name}: the fence at line {start - 1} is not closed"
    return found


def prose(page: Path) -> str:
    """What is left without the fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def block_commands(block: Block) -> list[str]:
    """The commands of a bash block; comments and empty lines are none."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if shlex.split(line, comments=True)]


def inline_commands(page: Path) -> list[str]:
    """Commands in running text, as `python -m benchmarks.speed`."""
    quoted = (" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose(page)))
    return [text for text in quoted if _PROGRAM.match(text)]


def links(page: Path) -> list[str]:
    """Targets of the page's links and images that are no addresses."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not target.startswith(("http:", "https:", "mailto:"))]


def anchors(page: Path) -> set[str]:
    """The names by which headings are linked to."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}
