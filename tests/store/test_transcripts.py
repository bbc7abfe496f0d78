from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines.errors import ConfigError, ProvenanceError, StoreError, UtteranceError
from pipelines.store.transcripts import (
    TranscriptProvenance,
    TranscriptRow,
    find_transcripts,
    open_transcript_writer,
    parse_text_condition,
    read_transcripts,
    text_condition,
    texts_digest,
    transcripts_path,
)

IDS = [f"u{number:02d}" for number in range(10)]


def provenance(**changes: object) -> TranscriptProvenance:
    made = TranscriptProvenance(
        corpus="toy",
        manifest_digest="ab" * 32,
        model="hearer",
        condition="clean",
        condition_digest="",
        language="en",
        decoding="greedy 1",
        weights_kind="random",
        weights_source="random",
        weights_revision="",
        weights_digest="cd" * 32,
        weights_licence="none",
        sample_rate_hz=16000,
        resampler="soxr-VHQ",
        precision="float32",
        device="cpu",
        versions={"torch": "1", "numpy": "2"},
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def row(number: int) -> TranscriptRow:
    """A text, an empty one, one with line breaks and quotes, or a failure."""
    if number == 3:
        return TranscriptRow(None, "clip.wav is silent.", math.nan)
    return TranscriptRow({4: "", 5: 'Straße "x"\nzwei 🙂'}.get(number, f"words {number}"), "", 0.5 + number)


def write(cache: Path, *, blocks: Sequence[int] = (0, 1, 2), ids: Sequence[str] = IDS, **options: object) -> Path:
    made = options.pop("made", None) or provenance()
    assert isinstance(made, TranscriptProvenance)
    path = transcripts_path(cache, "toy", "hearer", made.condition)
    assert isinstance(path, Path)
    with open_transcript_writer(path, provenance=made, utterance_ids=ids, block_rows=4, **options) as writer:  # type: ignore[arg-type]
        for block in writer.blocks_to_do():
            if block in blocks:
                writer.write_block(block, [row(int(name[1:])) for name in ids[4 * block : 4 * block + 4]])
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert path == tmp_path / "toy" / "transcripts" / "hearer" / "clean.asr"
    found = read_transcripts(tmp_path, "toy", "hearer", manifest_digest="ab" * 32)
    assert found.provenance == provenance()
    assert list(found.utterance_ids) == IDS
    assert found.is_complete
    assert found.texts == [row(number).text for number in range(10)]
    assert [entry.duration_s for entry in found.rows[:3]] == [0.5, 1.5, 2.5]
    assert math.isnan(found.rows[3].duration_s)
    assert found.failures == {"u03": "clip.wav is silent."}
    assert found.by_id["u04"] == ""
    assert "u03" not in found.by_id
    assert find_transcripts(tmp_path, "toy") == [("hearer", "clean")]
    assert find_transcripts(tmp_path, "other") == []


def test_texts_are_joined_by_id(tmp_path: Path) -> None:
    write(tmp_path)
    found = read_transcripts(tmp_path, "toy", "hearer")
    assert found.texts_of(["u09", "u04", "u00"]) == ["words 9", "", "words 0"]
    with pytest.raises(
        UtteranceError, match=r"1 of 2 utterances have no text .* u03 \(clip\.wav is silent\.\).*--retry-failed"
    ):
        found.texts_of(["u00", "u03"])
    with pytest.raises(UtteranceError, match=r"u77 \(not among the utterances that were transcribed\)"):
        found.texts_of(["u77"])


def test_resumed_is_bit_identical(tmp_path: Path) -> None:
    whole = write(tmp_path / "a")
    write(tmp_path / "b", blocks=[1])
    parts = write(tmp_path / "b", blocks=[0])
    with pytest.raises(
        StoreError, match=r"unfinished: 8 of 10 utterances\. Finish them with `hyfuse transcribe --corpus toy"
    ):
        read_transcripts(tmp_path / "b", "toy", "hearer")
    assert not read_transcripts(tmp_path / "b", "toy", "hearer", complete=False).is_complete
    write(tmp_path / "b", blocks=[2])
    assert contents(whole) == contents(parts)


def test_a_temporary_file_of_a_killed_run_does_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path, blocks=[0])
    (path / ".writing-block-000001.jsonl-77").write_text("half of i")
    write(tmp_path)
    assert len(read_transcripts(tmp_path, "toy", "hearer")) == 10
    assert not list(path.glob(".writing*"))


def test_failed_rows_are_tried_again_only_if_asked(tmp_path: Path) -> None:
    path = write(tmp_path)
    with open_transcript_writer(path, provenance=provenance(), utterance_ids=IDS) as writer:
        assert writer.blocks_to_do() == []
        assert writer.num_done == 10
        assert writer.failures() == {"u03": "clip.wav is silent."}
    with open_transcript_writer(path, provenance=provenance(), utterance_ids=IDS, retry_failed=True) as writer:
        assert writer.blocks_to_do() == [0]
        assert writer.failures() == {}
        writer.write_block(0, [TranscriptRow("now", "", 1.0)] * 4)
    assert read_transcripts(tmp_path, "toy", "hearer").by_id["u03"] == "now"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("manifest_digest", "ef" * 32),
        ("weights_digest", "ef" * 32),
        ("language", "de"),
        ("condition_digest", "ef" * 32),
        ("decoding", "greedy 2"),
    ],
)
def test_other_provenance_is_refused(tmp_path: Path, name: str, value: str) -> None:
    write(tmp_path)
    with pytest.raises(ProvenanceError, match=rf"{name}: they have .*, asked for is {value[:2]}.*--anew"):
        write(tmp_path, made=provenance(**{name: value}))


def test_other_libraries_may_read_but_not_continue(tmp_path: Path) -> None:
    other = provenance(versions={"torch": "2", "numpy": "2"})
    write(tmp_path, blocks=[0])
    with pytest.raises(ProvenanceError, match=r"versions: they have numpy 2, torch 1, asked for is numpy 2, torch 2"):
        write(tmp_path, made=other)
    write(tmp_path)
    write(tmp_path, made=other)  # nothing is left to do


def test_anew_forgets_what_is_there(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, made=provenance(language="de"), anew=True)
    assert read_transcripts(tmp_path, "toy", "hearer").provenance.language == "de"


def test_another_manifest_when_reading(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ProvenanceError, match=r"manifest_digest: they have abababababab, asked for is 111111111111"):
        read_transcripts(tmp_path, "toy", "hearer", manifest_digest="1" * 64)


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError,
        match=r"no transcripts of 'toy' by whisper under white@5dB: .*`hyfuse transcribe --corpus toy --model whisper"
        r" --condition white@5dB`",
    ):
        read_transcripts(tmp_path, "toy", "whisper", "white@5dB")


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "not JSON"])
def test_damaged_blocks_are_noticed(tmp_path: Path, damage: str) -> None:
    file = write(tmp_path) / "block-000001.jsonl"
    content = file.read_text()
    file.write_text(
        {
            "cut": content[: len(content) // 2],
            "changed": content.replace("words 6", "words 7"),
            "emptied": "",
            "not JSON": content.replace("{", "("),
        }[damage]
    )
    with pytest.raises(StoreError, match=r"are damaged: block-000001\.jsonl .*--anew"):
        read_transcripts(tmp_path, "toy", "hearer")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "transcripts.json cannot be read"),
        ('{"schema_version": 9}', "schema version is 9"),
        ('{"a": 1}', "cannot be read"),
    ],
)
def test_damaged_header(tmp_path: Path, content: str, message: str) -> None:
    (write(tmp_path) / "transcripts.json").write_text(content)
    with pytest.raises(StoreError, match=message):
        read_transcripts(tmp_path, "toy", "hearer")


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    path = write(tmp_path)
    with (
        open_transcript_writer(path, provenance=provenance(), utterance_ids=IDS),
        pytest.raises(StoreError, match=r"Another process .* is writing"),
        open_transcript_writer(path, provenance=provenance(), utterance_ids=IDS),
    ):
        pass


def test_a_row_has_a_text_or_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "x.asr"
    with open_transcript_writer(path, provenance=provenance(), utterance_ids=["a"]) as writer:
        for wrong in (TranscriptRow(None, "", 0.0), TranscriptRow("a", "b", 0.0)):
            with pytest.raises(ValueError, match="either a text, which may be empty, or a reason"):
                writer.write_block(0, [wrong])
        with pytest.raises(ValueError, match="Block 0 has 1 rows, not 2"):
            writer.write_block(0, [row(0), row(1)])


def test_the_digest_is_that_of_texts_alone(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", made=provenance(weights_digest="ef" * 32))
    digests = {read_transcripts(tmp_path / part, "toy", "hearer").digest for part in ("a", "b")}
    assert len(digests) == 1
    assert texts_digest(["a"], [""]) != texts_digest(["a"], [None])
    assert texts_digest(["a", "b"], ["x", "y"]) != texts_digest(["a", "b"], ["y", "x"])


@pytest.mark.parametrize(
    ("model", "condition", "name"),
    [
        (None, "clean", "clean"),
        ("whisper", "clean", "asr:whisper"),
        ("whisper", "noise:esc10@5dB+telephone", "asr:whisper+noise:esc10@5dB+telephone"),
    ],
)
def test_conditions_of_text(model: str | None, condition: str, name: str) -> None:
    assert text_condition(model, condition) == name
    assert parse_text_condition(name) == (model, condition)


def test_conditions_that_are_none() -> None:
    with pytest.raises(ConfigError, match=r"by hand are the same under every condition.*--transcripts asr:whisper"):
        text_condition(None, "white@5dB")
    for name in ("white@5dB", "asr:", "asr:whisper+", "ASR:whisper"):
        with pytest.raises(ConfigError, match="is no condition of text"):
            parse_text_condition(name)


def test_the_header_is_json_for_humans(tmp_path: Path) -> None:
    header = json.loads((write(tmp_path) / "transcripts.json").read_text())
    assert (header["model"], header["utterances"], header["block_rows"]) == ("hearer", 10, 4)
