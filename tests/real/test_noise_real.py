"""The study on noise on real speech, in real noise, with real weights: Emo-DB, ESC-10, BYOL-S and SoundStream (Lyra)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.studies.outcome import Cell, read_outcome
from tests.cli.conftest import Runner
from tests.cli.conftest import hyfuse as hyfuse


@pytest.mark.slow
def test_noise_on_emodb(real_data: Path, hyfuse: Runner, tmp_path: Path) -> None:
    """With two of the four SNRs of ``docs/noise.md`` and a single seed; what it says holds with room to spare."""
    under = ("noise:esc10@10dB", "noise:esc10@0dB")
    made = hyfuse(
        "extract", "--corpus", "emodb", "--data-root", real_data / "corpora" / "emodb", "--weights-dir", real_data / "weights",
        "--noise-dir", real_data / "noise", "--model", "byols", "--model", "soundstream-lyra", "--condition", "clean",
        *(word for name in under for word in ("--condition", name)),
    )  # fmt: skip
    assert made.status == 0, made.err
    done = hyfuse(
        "study", "noise", "--corpus", "emodb", "--models", "byols soundstream-lyra", "--conditions", " ".join(under),
        "--training", "clean,multi", "--fusions", "concat", "--seeds", 1, "--run", "noise",
    )  # fmt: skip
    assert done.status == 0, done.err
    outcome = read_outcome(tmp_path / "runs" / "noise")
    assert outcome.warnings == () or not any("RANDOM" in one for one in outcome.warnings)
    tables = {table.name: table for table in outcome.tables}

    def scores(name: str) -> dict[str, list[float]]:
        rows = tables[f"scores-{name}"].rows
        return {str(row[0]): [cell.value for cell in row[1:] if isinstance(cell, Cell)] for row in rows}

    clean, multi = scores("clean"), scores("multi")
    for head in ("byols", "soundstream-lyra", "byols+soundstream-lyra concat"):
        assert clean[head][0] > clean[head][1] > clean[head][2] + 5  # less and less, from clean to 0 dB
        assert clean[head][2] > 100 / 7  # and yet more than chance
        assert multi[head][2] > clean[head][2] + 5  # having heard noise helps most where there is most
    assert clean["byols"][0] > 70
    assert any("? Yes, multi training" in answer for answer in outcome.answers)
