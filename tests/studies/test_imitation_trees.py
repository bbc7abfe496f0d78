"""Every study's command line, end to end, on imitations of IEMOCAP and MSP-Podcast in their official folders, with random weights.

From ``hyfuse extract --data-root`` on: layouts, raters, transcripts, protocols, stores, frames, recognisers, studies. What numbers
such encoders give says nothing, but for what the demo corpus (whose voices and words these trees hold) puts in: valence in words.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.corpora.manifest import read_manifest
from pipelines.corpora.raters import soft_labels
from pipelines.studies.outcome import Outcome, read_outcome
from tests.corpora.spoken_trees import spoken_iemocap, spoken_msp_podcast

pytestmark = pytest.mark.slow

NOISE = ("babble@10dB", "babble@0dB")
TREES: dict[str, Callable[..., Path]] = {"iemocap": spoken_iemocap, "msp-podcast": spoken_msp_podcast}


@dataclass(frozen=True)
class Prepared:
    """A corpus that everything the studies need was extracted of."""

    name: str
    folder: Path

    def run(self, *arguments: object) -> str:
        """``hyfuse …`` as the shell would run it; its output, with line breaks as spaces."""
        from hyfuse_cli.app import main

        if arguments[0] != "report":
            arguments = (*arguments, "--cache-dir", self.folder / "cache")

        before, said, status = sys.argv, io.StringIO(), None
        sys.argv = ["hyfuse", *map(str, arguments)]
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                main()
        except SystemExit as ended:
            status = ended.code
        finally:
            sys.argv = before
        assert not status, f"hyfuse {' '.join(map(str, arguments))}: {said.getvalue()}"
        return " ".join(said.getvalue().split())

    def study(self, name: str, *arguments: object) -> Outcome:
        """``hyfuse study NAME …``: what it wrote down."""
        run_dir = self.folder / "runs" / name
        said = self.run("study", name, "--corpus", self.name, *arguments, "--run", name, "--runs-dir", run_dir.parent)
        outcome = read_outcome(run_dir)
        assert f"hyfuse report {run_dir}".replace(" ", "") in said.replace(" ", "")
        assert outcome.answers
        assert any("random" in warning.lower() for warning in outcome.warnings), outcome.warnings
        page = self.run("report", run_dir)
        assert "report" in page
        return outcome


@pytest.fixture(scope="module", params=sorted(TREES))
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    folder = tmp_path_factory.mktemp(request.param)
    corpus = Prepared(request.param, folder)
    root = TREES[request.param](folder / "official", sentences=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("HYFUSE_CACHE", "HYFUSE_WEIGHTS", "HYFUSE_WEIGHTS_KIND", "HYFUSE_DEBUG"):
            patch.delenv(name, raising=False)
        one = ("--corpus", request.param, "--weights", "random")
        conditions = [part for condition in ("clean", *NOISE) for part in ("--condition", condition)]
        corpus.run("extract", *one, "--data-root", root, "--model", "wavlm-tiny", *conditions, "--frames")
        corpus.run("extract", *one, "--model", "descriptors")
        corpus.run("extract", *one, "--model", "wav2vec2-ctc-tiny", "--model", "bert-tiny", "--frames")
        corpus.run("transcribe", *one, "--model", "wav2vec2-ctc-tiny")
        corpus.run("extract", *one, "--model", "bert-tiny", "--transcripts", "asr:wav2vec2-ctc-tiny", "--frames")
        yield corpus


def test_raters_reach_the_manifest(prepared: Prepared) -> None:
    table = read_manifest(prepared.folder / "cache" / prepared.name / "manifest.csv").table
    named = soft_labels(table["emotion_votes"].tolist(), ("anger", "happiness", "neutral", "sadness"))
    assert len(named) == len(table) == {"iemocap": 85, "msp-podcast": 120}[prepared.name]
    assert all(cell.count(";") == 4 for cell in table["valence_ratings"])  # five raters
    said = prepared.run("corpora", "check", prepared.name)
    assert "agreement as Krippendorff's alpha" in said


def test_layers(prepared: Prepared) -> None:
    outcome = prepared.study("layers", "--model", "wavlm-tiny", "--target", "dimensions", "--seeds", 1)
    said = " ".join(outcome.answers)
    assert "Best layer for arousal" in said
    assert "Best layer for valence" in said


def test_noise(prepared: Prepared) -> None:
    heard = ("--models", "wavlm-tiny bert-tiny", "--conditions", " ".join(NOISE), "--fusions", "concat", "--seeds", 1)
    outcome = prepared.study("noise", *heard, "--target", "dimensions")
    said = " ".join(outcome.answers)
    assert "Does noise hurt acoustics more than text?" in said
    assert any(figure.kind == "lines" for figure in outcome.figures)


def test_distill(prepared: Prepared) -> None:
    heard = ("--acoustic", "wavlm-tiny", "--text", "bert-tiny", "--conditions", " ".join(NOISE), "--seeds", 1)
    outcome = prepared.study("distill", *heard, "--target", "dimensions")
    assert "Does the teacher help its student?" in " ".join(outcome.answers)


def test_asr_fusion(prepared: Prepared) -> None:
    streams = (
        "--acoustic",
        "wavlm-tiny",
        "--asr",
        "wav2vec2-ctc-tiny",
        "--text",
        "bert-tiny",
        "--transcripts",
        "manual,asr",
    )
    small = ("--heads", "hierarchical", "--lambda", "0.3", "--epochs", 2, "--hidden-dim", 16)
    outcome = prepared.study("asr-fusion", *streams, *small)
    said = " ".join(outcome.answers)
    assert "Is the text of a recogniser as good for emotion as one by hand?" in said
    assert "How many words does CTC on the shared stack get wrong?" in said
