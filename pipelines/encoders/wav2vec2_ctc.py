"""wav2vec 2.0 with a layer of letters (Baevski et al. 2020), trained with CTC (Graves et al. 2006): ``wav2vec2-ctc``.

As an encoder it is one of the family of ``ssl.py``; its layers are the hidden frames of a recogniser. Here its last layer
goes through ``lm_head`` to one letter per frame.

**Greedy decoding**: the likeliest letter of every frame; frames of ``<s>``, ``</s>`` and ``<unk>`` are left out, as
upstream's tokenizer does when special tokens are skipped; runs of one letter are one letter; blanks (``<pad>``) go; ``|`` is
the space between words. A vocabulary without lower-case letters (that of LibriSpeech) is written in lower case: encoders of
text that tell capitals apart have learned that a text of capitals is shouted.

**Long recordings** go through the windows of the encoder, 60 s with 2 s of context on either side. Every frame comes from
one window, the letters of all frames are joined before runs are merged, so a word at the seam is written once.

The checkpoint of LibriSpeech knows English only, letters and the apostrophe: numbers are spelled, nothing is punctuated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.encoders.catalogue import EncoderSpec
from pipelines.encoders.recognition import AUTO, Recogniser, with_files
from pipelines.encoders.ssl import SSLEncoder
from pipelines.encoders.state_check import check_state
from pipelines.encoders.weights import Progress, find_checkpoint, load_pickle_free, random_initialisation, state_digest
from pipelines.encoders.windows import Window, plan_windows
from pipelines.errors import ConfigError, WeightsError

__all__ = ["LIBRISPEECH", "CTCRecogniser", "Vocabulary", "read_vocabulary"]

_LANGUAGE = "en"
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_SPACE = "|"


@dataclass(frozen=True)
class Vocabulary:
    """The letters of a recogniser.

    Attributes:
        letters: by their number, as upstream's ``vocab.json`` names them; ``<pad>`` is the blank, ``|`` the space.
    """

    letters: tuple[str, ...]

    @property
    def blank(self) -> int:
        """Number of the blank."""
        return self.letters.index("<pad>")

    @property
    def digest(self) -> str:
        """sha256 over the letters."""
        return hashlib.sha256(json.dumps(self.letters).encode()).hexdigest()

    def spell(self, frames: Tensor) -> str:
        """The text of one letter per frame, int64 [T]."""
        blank, unwritten = _SPECIAL[0], _SPECIAL[1:]
        letters = [letter for letter in map(self.letters.__getitem__, frames.tolist()) if letter not in unwritten]
        merged = (letter for letter, _ in groupby(letters) if letter != blank)
        text = "".join(" " if letter == _SPACE else letter for letter in merged)
        text = " ".join(text.split())
        has_lower = any(letter.islower() for letter in self.letters if letter not in _SPECIAL)
        return text if has_lower else text.lower()


LIBRISPEECH = Vocabulary((*_SPECIAL, _SPACE, *"ETAOINHSRDLUMWCFGYPBVK'XJQZ"))
"""Letters of ``facebook/wav2vec2-base-960h``, by how often they occur; random weights have them, too."""


def read_vocabulary(path: Path, spec: EncoderSpec) -> Vocabulary:
    """``vocab.json`` of a checkpoint: letter to number.

    Raises:
        WeightsError: damaged, numbers with gaps, or without blank or space.
    """
    try:
        numbers = {str(letter): int(number) for letter, number in dict(json.loads(path.read_text("utf-8"))).items()}
        problem = ""
    except (OSError, ValueError, TypeError) as error:
        numbers, problem = {}, f"it cannot be read ({error})"
    if not problem and sorted(numbers.values()) != list(range(len(numbers))):
        problem = "its numbers are not 0, 1, 2, … once each"
    if not problem and not {"<pad>", _SPACE} <= set(numbers):
        problem = f"it has no {' and no '.join(name for name in ('<pad>', _SPACE) if name not in numbers)}"
    if problem:
        raise WeightsError(
            f"{path} is no vocabulary of letters: {problem}. Expected letter to number, with the blank <pad> and the space |. It"
            f" belongs to the weights of {spec.name!r}: get it again from {spec.repository}."
        )
    return Vocabulary(tuple(sorted(numbers, key=numbers.__getitem__)))


class CTCRecogniser(Recogniser):
    """A wav2vec2-like encoder with a layer of letters.

    Attributes:
        vocabulary: the letters.
        head: hidden frames [..., D] to logits [..., letters].
    """

    decoding = "greedy CTC 1"

    def __init__(
        self, *, spec: EncoderSpec, encoder: SSLEncoder, head: nn.Linear, vocabulary: Vocabulary, language: str
    ) -> None:
        parts = f"{encoder.weights.digest} {state_digest(head.state_dict())} {vocabulary.digest}"
        weights = replace(encoder.weights, digest=hashlib.sha256(parts.encode()).hexdigest())
        super().__init__(spec=spec, weights=weights, encoder=encoder, language=language)
        self.vocabulary = vocabulary
        self.head = head.eval().requires_grad_(False).to(encoder.device)

    @classmethod
    def build(
        cls,
        *,
        spec: EncoderSpec,
        weights_kind: str,
        device: torch.device,
        weights_dir: Path | None = None,
        progress: Progress | None = None,
        language: str = AUTO,
    ) -> CTCRecogniser:
        """Load (``pretrained``) or initialise (``random``) the recogniser; a checkpoint is one of ``Wav2Vec2ForCTC``.

        Raises:
            ConfigError: a language other than English.
            WeightsError: the checkpoint is absent, damaged, of another size, or without its layer of letters.
        """
        if language not in {AUTO, _LANGUAGE}:
            raise ConfigError(
                f"{spec.name!r} knows English only, not {language!r}. Leave --language out, or use `--model whisper`, which knows"
                " 99 languages."
            )
        if spec.files:
            spec = with_files(spec, "vocab.json")
        encoder = SSLEncoder.build(
            spec=spec, weights_kind=weights_kind, device=device, weights_dir=weights_dir, progress=progress
        )
        if weights_kind == "random":
            vocabulary = LIBRISPEECH
            with random_initialisation(replace(spec, name=f"{spec.name} letters")):
                head = nn.Linear(spec.dim, len(vocabulary.letters))
        else:
            folder, _ = find_checkpoint(spec, weights_dir=weights_dir, progress=progress)
            vocabulary = read_vocabulary(folder / "vocab.json", spec)
            head = _read_head(spec, folder, len(vocabulary.letters))
        return cls(spec=spec, encoder=encoder, head=head, vocabulary=vocabulary, language=_LANGUAGE)

    def windows(self, samples: Tensor) -> list[Window]:
        """See :meth:`Recogniser.windows`; windows overlap."""
        return plan_windows(self.encoder, len(samples))

    @torch.inference_mode()
    def logits(self, batch: Sequence[Tensor]) -> list[Tensor]:
        """Logits of every frame, float32 [T, letters], on the device.

        Args:
            batch: B pieces, float32 [samples], on the CPU.
        """
        last = None
        for representation in self.encoder.encode_padded(batch):
            last = representation  # of the layers, only the last
        assert last is not None
        logits = self.head(last.frames)  # [B, T, letters]
        return [logits[row, :count] for row, count in enumerate(last.num_frames.tolist())]

    @torch.inference_mode()
    def hear(self, batch: Sequence[Tensor]) -> list[Tensor | None]:
        """See :meth:`Recogniser.hear`: the likeliest letter of every frame."""
        return [
            logits.argmax(dim=-1).cpu() if bool(torch.isfinite(logits).all()) else None for logits in self.logits(batch)
        ]

    def spell(self, heard: Sequence[Tensor], windows: Sequence[Window]) -> str:
        """See :meth:`Recogniser.spell`."""
        kept = [frames[window.first : window.last] for frames, window in zip(heard, windows, strict=True)]
        return self.vocabulary.spell(torch.cat(kept))


def _read_head(spec: EncoderSpec, folder: Path, letters: int) -> nn.Linear:
    """``lm_head`` of the checkpoint, checked, in float32."""
    path = next(folder / name for name in spec.files[-1].name.split("|") if (folder / name).is_file())
    prefix = "lm_head."
    state: Mapping[str, object] = {
        name.removeprefix(prefix): tensor for name, tensor in load_pickle_free(path).items() if name.startswith(prefix)
    }
    with torch.device("meta"):
        head = nn.Linear(spec.dim, letters)
    found = check_state(state, head.state_dict(), path=path, spec=spec)
    head.load_state_dict({name: tensor.float() for name, tensor in found.items()}, assign=True)
    return head
