"""The pages of docs/ and README.md as blocks of code, and which of them are run.

The rule, which CONTRIBUTING.md tells writers: a block fenced as ``sh`` is run, in one shell, in the folder that earlier blocks of
its page left behind, unless it holds what only its reader can fill in or what reaches beyond this machine (``PLACEHOLDERS``). A
block fenced as ``python`` is run likewise. Every ``hyfuse`` command of every block, run or not, is parsed: its options exist.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])

# A word in capitals, a path of some other machine, another corpus than the demo, the network, a cluster, pip.
PLACEHOLDERS = re.compile(
    r"(?<![\w$./-])[A-Z]{3,}(?![\w=-])|/data\b|/scratch\b|…|\$SLURM|s3://|gs://|#SBATCH|\bray start\b|\bpip install\b|\bmake \w"
    r"|\bgit \w|\b(iemocap|msp-podcast|emodb|cremad|ravdess|meld)\b|\bhyfuse (demo|push)\b|\bowner/name\b"
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its page.
        language: ``sh``, ``python``, …; empty for none.
        text: what is in it.
    """

    page: Path
    language: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether it is run as it stands."""
        return self.language in {"sh", "python"} and not PLACEHOLDERS.search(_without_comments(self.text))


def _without_comments(text: str) -> str:
    return "\n".join(line.split(" #")[0] for line in text.splitlines() if not line.startswith("# "))


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    return [Block(page, language, text) for language, text in _FENCE.findall(page.read_text(encoding="utf-8"))]


def hyfuse_commands(block: Block) -> list[list[str]]:
    """Arguments of every ``hyfuse`` command of a shell block."""
    if block.language != "sh":
        return []
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("…", ""), comments=True)
        for separator in ("||", "&&", "|", ">"):
            if separator in words:
                words = words[: words.index(separator)]
        if "hyfuse" in words and (words[0] in {"hyfuse", "srun"} or "=" in words[0]):
            found.append(words[words.index("hyfuse") + 1 :])
    return found
