"""Models on frames: they find what was put in, depend on nothing but their task, and learn to spell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.errors import ConfigError, UnknownNameError
from pipelines.fusion.frames.sequences import Frames
from pipelines.training.frame_trainer import FrameConfig, FrameModel, FrameResult, FrameSystem, train_frames
from pipelines.training.trainer import HeadTask
from tests.training.frames import SENTENCES, frame_file, signal_files, thirds

CONFIG = FrameConfig(epochs=14, batch_size=8, hidden_dim=16, attention_heads=2, learning_rate=1e-2)


def _train(files: Any, labels: Any, system: FrameSystem, **changes: Any) -> FrameResult:
    given = {"transcripts": [], "task": thirds(len(labels)), "num_outputs": 2, "config": CONFIG, **changes}
    return train_frames(system=system, files=files, truth=labels, **given)


def _accuracy(result: FrameResult, labels: Any) -> float:
    return float(np.mean(result.outputs.argmax(axis=1) == labels[result.task.test]))


@pytest.mark.parametrize("stream", ["acoustic", "text"])
def test_what_one_stream_says_is_found_there_and_nowhere_else(tmp_path: Path, stream: str) -> None:
    files, labels = signal_files(tmp_path, where=(stream,))
    alone = _train(files, labels, FrameSystem(streams=(stream,)))
    assert _accuracy(alone, labels) > 0.9
    other = "text" if stream == "acoustic" else "acoustic"
    assert _accuracy(_train(files, labels, FrameSystem(streams=(other,))), labels) < 0.75
    fused = _train(files, labels, FrameSystem(streams=("acoustic", "asr", "text"), head="hierarchical"))
    assert _accuracy(fused, labels) > 0.85
    drops = {
        name: _accuracy(fused, labels) - float(np.mean(one.argmax(axis=1) == labels[fused.task.test]))
        for name, one in fused.shuffled.items()
    }
    assert drops[stream] > 0.2
    assert all(abs(drop) < 0.2 for name, drop in drops.items() if name != stream)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["early", "cross", "hierarchical"])
def test_what_only_two_streams_together_say_is_found_by_every_fusion(tmp_path: Path, head: str) -> None:
    files, labels = signal_files(tmp_path, utterances=360, where=("acoustic", "text"))
    for name in ("acoustic", "text"):
        assert _accuracy(_train(files, labels, FrameSystem(streams=(name,))), labels) < 0.65
    system = FrameSystem(streams=("acoustic", "text"), head=head)
    fused = _train(files, labels, system, config=replace(CONFIG, epochs=40, hidden_dim=32))
    assert _accuracy(fused, labels) > 0.8


def test_values_are_learned_and_given_on_their_own_scale(tmp_path: Path) -> None:
    files, labels = signal_files(tmp_path)
    values = (3.0 + labels + np.random.default_rng(1).normal(0, 0.1, len(labels))).astype(np.float32)[:, None]
    result = _train(files, values, FrameSystem(streams=("acoustic",)), num_outputs=1)
    truth = values[result.task.test, 0]
    assert np.corrcoef(result.outputs[:, 0], truth)[0, 1] > 0.8
    assert abs(float(result.outputs.mean() - truth.mean())) < 0.3
    assert "validation_ccc" in result.curves


def _spoken(folder: Path, utterances: int = 60) -> tuple[dict[str, Any], list[str]]:
    """Acoustic frames that say their text: every character is two frames of its own feature."""
    stream = np.random.default_rng(2)
    texts = [SENTENCES[index] for index in stream.integers(0, len(SENTENCES), utterances)]
    sequences = []
    for text in texts:
        frames = stream.normal(0, 0.1, (3 * len(text), 5))
        for place, letter in enumerate(text):
            frames[3 * place : 3 * place + 2, "abc ".index(letter)] += 3.0
        sequences.append(frames)
    return {"acoustic": frame_file(folder / "spoken.frames", sequences)}, texts


def test_ctc_learns_to_spell_beside_the_emotion(tmp_path: Path) -> None:
    files, texts = _spoken(tmp_path)
    labels = np.array([len(text) > 4 for text in texts], dtype=np.int64)
    system = FrameSystem(streams=("acoustic",), ctc_weight=0.5)
    result = _train(files, labels, system, transcripts=texts, config=replace(CONFIG, epochs=30))
    right = [text == texts[row] for text, row in zip(result.hypotheses, result.task.test, strict=True)]
    assert np.mean(right) > 0.9
    assert result.unsayable == 0.0
    assert result.curves["ctc_loss"][-1] < 0.2 < result.curves["ctc_loss"][0]
    assert _accuracy(result, labels) > 0.9
    without = _train(files, labels, replace(system, ctc_weight=0.0))
    assert without.hypotheses == ()
    assert without.parameters == result.parameters - 17 * (len("abc ") + 1)


def test_a_result_depends_on_its_task_alone(tmp_path: Path) -> None:
    files, labels = signal_files(tmp_path, utterances=36)
    system = FrameSystem(streams=("acoustic", "text"), head="cross", ctc_weight=0.2)
    texts = ["ab"] * 36
    config = replace(CONFIG, epochs=2)
    first = _train(files, labels, system, transcripts=texts, config=config)
    torch.manual_seed(99)
    torch.rand(7)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    again = _train(files, labels, system, transcripts=texts, config=config)
    assert again.outputs.tobytes() == first.outputs.tobytes()
    assert repr(again.curves) == repr(first.curves)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    other = _train(files, labels, system, transcripts=texts, config=config, task=thirds(36, seed=1))
    assert not np.allclose(other.outputs, first.outputs)


def test_test_rows_influence_nothing(tmp_path: Path) -> None:
    """Other labels, texts and frames of other test rows: what is learned and said of a row stays the same."""
    files, labels = signal_files(tmp_path, utterances=36)
    system = FrameSystem(streams=("acoustic",), ctc_weight=0.2)
    config, texts = replace(CONFIG, epochs=2), ["ab"] * 36
    task = thirds(36)
    whole = _train(files, labels, system, transcripts=texts, config=config, task=task)
    changed = labels.copy()
    changed[task.test] = 1 - changed[task.test]
    fewer = replace(task, test=task.test[::2])
    said = ["ab" if row < 24 else "zz" for row in range(36)]
    part = _train(files, changed, system, transcripts=said, config=config, task=fewer)
    np.testing.assert_allclose(part.outputs, whole.outputs[::2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("selection", ["last", "loss", "uar"])
def test_selection_holds_the_validation_part_out(tmp_path: Path, selection: str) -> None:
    files, labels = signal_files(tmp_path, utterances=48)
    result = _train(
        files, labels, FrameSystem(streams=("acoustic",)), config=replace(CONFIG, epochs=5, selection=selection)
    )
    losses, uars = result.curves["validation_loss"], result.curves["validation_uar"]
    assert not np.isnan(losses).any()
    best = {"last": 5, "loss": int(np.argmin(losses)) + 1, "uar": int(np.argmax(uars)) + 1}[selection]
    assert result.best_epoch == best


def test_the_stack_does_not_feel_padding() -> None:
    torch.manual_seed(0)
    model = FrameModel(
        system=FrameSystem(streams=("acoustic",), ctc_weight=0.5),
        dims={"acoustic": 6},
        num_outputs=3,
        symbols=4,
        config=replace(CONFIG, stack_layers=2),
    ).eval()
    sequences = [torch.randn(length, 6) for length in (9, 2, 5)]
    with torch.no_grad():
        outputs, spelled = model({"acoustic": Frames.of(sequences)})
        for row, one in enumerate(sequences):
            alone, said = model({"acoustic": Frames.of([one])})
            torch.testing.assert_close(outputs[row], alone[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(spelled[row, : len(one)], said[0], rtol=1e-5, atol=1e-5)


def test_mistakes_are_named(tmp_path: Path) -> None:
    files, labels = signal_files(tmp_path, utterances=36)
    with pytest.raises(ConfigError, match="λ is 1, but it must be at least 0 and below 1"):
        FrameSystem(streams=("acoustic",), ctc_weight=1.0)
    with pytest.raises(ConfigError, match="needs the acoustic stream"):
        FrameSystem(streams=("text",), ctc_weight=0.5)
    with pytest.raises(ConfigError, match="in this order"):
        FrameSystem(streams=("text", "acoustic"))
    with pytest.raises(ConfigError, match="'epochs' is 0"):
        FrameConfig(epochs=0)
    with pytest.raises(ConfigError, match="multiple of attention_heads"):
        FrameConfig(hidden_dim=30, attention_heads=4)
    with pytest.raises(UnknownNameError, match="selection 'best'"):
        FrameConfig(selection="best")
    spelling = FrameSystem(streams=("acoustic",), ctc_weight=0.5)
    with pytest.raises(ConfigError, match="every text has more characters than its recording has acoustic frames"):
        _train(files, labels, spelling, transcripts=["a long text, far too long for these frames"] * 36)
    with pytest.raises(ConfigError, match="none of the texts has a character"):
        _train(files, labels, spelling, transcripts=["…"] * 36)
    with pytest.raises(ConfigError, match="--selection ccc is for dimensions"):
        _train(files, labels, FrameSystem(streams=("acoustic",)), config=replace(CONFIG, selection="ccc"))
    sequences = np.split(np.array(files["acoustic"].open()), files["acoustic"].offsets[1:-1])
    sequences[0] = sequences[0] * np.nan
    broken = {"acoustic": frame_file(tmp_path / "broken.frames", sequences)}
    with pytest.raises(ConfigError, match=r"diverged: the loss of 'alone' on acoustic, fold '1', seed 0 is nan"):
        _train(broken, labels, FrameSystem(streams=("acoustic",)))


def test_a_task_names_its_fold(tmp_path: Path) -> None:
    files, labels = signal_files(tmp_path, utterances=36)
    task = thirds(36)
    renamed = HeadTask(fold="2", seed=0, train=task.train, validation=task.validation, test=task.test)
    config = replace(CONFIG, epochs=1)
    system = FrameSystem(streams=("text",))
    one, other = (_train(files, labels, system, config=config, task=each) for each in (task, renamed))
    assert not np.allclose(one.outputs, other.outputs)  # other folds, other random streams
