"""Conditions as texts: ``noise:esc10@5dB``, ``reverb:0.6s+telephone``; see ``conditions`` for what they mean.

A condition has one canonical text, which names the stores made under it: parts joined by ``+`` in the order given, numbers without
needless digits, folders by their short names, a seed at the end unless it is 0.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from dataclasses import dataclass

from pipelines.errors import ConfigError

__all__ = ["GRAMMAR", "KINDS", "RT60_RANGE_S", "SNR_RANGE_DB", "Condition", "Part", "condition_file_name", "is_path",
           "parse_condition"]  # fmt: skip

KINDS = ("clean", "noise", "babble", "white", "pink", "reverb", "telephone", "seed")
SNR_RANGE_DB = (-30.0, 60.0)
RT60_RANGE_S = (0.05, 10.0)

GRAMMAR = (
    "A condition is clean, or parts joined by +: noise:NAME@5dB or noise:/FOLDER@5dB, babble@5dB, white@5dB, pink@5dB, reverb:0.6s"
    " or reverb:/FOLDER, telephone, and at most one seed:N"
)

_MAX_NAME_BYTES = 200
_NUMBER = r"-?\d{1,5}(?:\.\d{1,3})?"


@dataclass(frozen=True)
class Part:
    """One part of a condition.

    Attributes:
        kind: one of ``noise``, ``babble``, ``white``, ``pink``, ``reverb``, ``telephone``.
        source: name or path of a folder, as it was given; empty where there is none.
        decibels: SNR; of ``reverb`` with an RT60, its direct-to-reverberant ratio.
        rt60_s: reverberation time of a made-up room.
    """

    kind: str
    source: str = ""
    decibels: float | None = None
    rt60_s: float | None = None

    @property
    def key(self) -> str:
        """What random choices depend on, and what may occur only once: kind and short name of the folder."""
        if not self.source:
            return self.kind
        name = _short_name(self.source)
        if self.kind == "reverb" and _like_a_number(name):  # or it would be taken for a reverberation time
            name = f"folder-{name}"
        return f"{self.kind}:{name}"

    @property
    def name(self) -> str:
        """Canonical text."""
        text = self.key
        if self.rt60_s is not None:
            text += f":{_written(self.rt60_s)}s"
        if self.decibels is not None and not (self.kind == "reverb" and self.decibels == 0.0):
            text += f"@{_written(self.decibels)}dB"
        return text


@dataclass(frozen=True)
class Condition:
    """A condition that makes sense as a text; whether its folders exist is for :func:`prepare_condition`.

    Attributes:
        parts: in order; none for ``clean``.
        seed: of the random choices.
    """

    parts: tuple[Part, ...] = ()
    seed: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing is done."""
        return not self.parts

    @property
    def is_random(self) -> bool:
        """Whether anything is chosen at random."""
        return any(part.kind != "telephone" for part in self.parts)

    @property
    def name(self) -> str:
        """Canonical text: the name of stores. Reading it again gives this name again."""
        seed = [f"seed:{self.seed}"] if self.seed else []
        return "+".join([*(part.name for part in self.parts), *seed]) or "clean"


def condition_file_name(name: str) -> str:
    """A condition's name as the stem of a file or of an object's key.

    Canonical names are their own; in other texts everything but letters, digits and ``_.-:@+`` becomes ``%`` and its UTF-8 bytes.
    """
    return "".join(
        letter
        if letter.isalnum() or letter in "_.-:@+"
        else "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogateescape"))
        for letter in name
    )


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        ConfigError: the text is no condition; the message has the grammar.
    """
    parts: list[Part] = []
    seed: int | None = None
    pieces = [piece.strip() for piece in text.split("+")]
    if not all(pieces):
        what = "is empty" if len(pieces) == 1 else "has an empty part (a + too many?)"
        raise _mistake(text, f"it {what}")
    for piece in pieces:
        head = re.split("[:@]", piece, maxsplit=1)[0]
        kind, rest = head.strip().lower(), piece[len(head) :]
        if kind == "seed":
            if seed is not None:
                raise _mistake(text, "it has more than one seed")
            if not re.fullmatch(r":\s*\d{1,9}", rest):
                raise _mistake(
                    text, f"the seed is {rest.lstrip(':')!r}, expected a whole number from 0 on, as in seed:3"
                )
            seed = int(rest.lstrip(": "))
        elif kind == "clean":
            if rest or len(pieces) > 1:
                raise _mistake(text, "clean stands alone: it means that nothing is done")
        elif kind in KINDS:
            parts.append(_parse_part(text, kind, rest))
        else:
            raise _unknown_part(text, piece, kind)
    keys = [part.key for part in parts]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise _mistake(
            text, f"{', '.join(twice)} occurs more than once (folders are told apart by their last part only)"
        )
    condition = Condition(tuple(parts), seed or 0)
    if seed is not None and not condition.is_random:
        raise _mistake(text, "it has a seed, but nothing in it is chosen at random")
    if len(condition.name.encode()) > _MAX_NAME_BYTES:
        raise _mistake(text, f"its name would be longer than {_MAX_NAME_BYTES} bytes")
    return condition


def _mistake(text: str, what: str) -> ConfigError:
    plus = " A folder with a + in its path needs a link without one: `ln -s`." if re.search(r"/.*\+", text) else ""
    return ConfigError(f"{text!r} is not a condition: {what}. {GRAMMAR}.{plus}")


def _unknown_part(text: str, piece: str, kind: str) -> ConfigError:
    if re.fullmatch(rf"{_NUMBER}\s*dB", piece, re.IGNORECASE):
        return _mistake(text, f"a positive SNR is written without a sign, as in @{piece}; + joins parts")
    near = difflib.get_close_matches(kind, KINDS, n=3, cutoff=0.5)
    nearest = f" (nearest: {', '.join(near)})" if near else ""
    return _mistake(text, f"{piece!r} is none of {', '.join(KINDS)}{nearest}")


def _parse_part(text: str, kind: str, rest: str) -> Part:
    """One part, by what follows its kind."""
    if kind == "telephone":
        if rest:
            raise _mistake(text, f"telephone takes nothing behind it, found {rest!r}")
        return Part(kind)
    if kind == "reverb":
        return _parse_reverb(text, rest)
    source, at, level = rest.rpartition("@")
    if not at:
        example = f"noise{rest}@5dB" if kind == "noise" and _short_name(rest[1:]) else "noise:esc10@5dB"
        raise _mistake(
            text, f"{kind} needs a signal-to-noise ratio, as in {example if kind == 'noise' else f'{kind}@5dB'}"
        )
    decibels = _decibels(text, level, "signal-to-noise ratio")
    if kind != "noise":
        if source:
            raise _mistake(text, f"{kind} takes no name, found {source!r}; write {kind}@{_written(decibels)}dB")
        return Part(kind, "", decibels)
    return Part(kind, _source(text, source, "noise:esc10@5dB"), decibels)


def _parse_reverb(text: str, rest: str) -> Part:
    body, at, level = rest.rpartition("@")
    if not at:
        body = rest
    seconds = body.removeprefix(":").strip()
    if (found := re.fullmatch(rf"({_NUMBER})\s*s", seconds, re.IGNORECASE)) is None:
        if at and re.fullmatch(rf"{_NUMBER}\s*dB", level.strip(), re.IGNORECASE) and not _like_a_number(seconds):
            raise _mistake(
                text, "measured rooms have a direct-to-reverberant ratio of their own; leave out what follows the @"
            )
        if _like_a_number(seconds):
            raise _mistake(
                text, f"the reverberation time is {seconds!r}, expected seconds with their unit, as in reverb:0.6s"
            )
        return Part("reverb", _source(text, rest, "reverb:0.6s or reverb:/data/rooms"))
    rt60_s, (least, most) = float(found[1]), RT60_RANGE_S
    if not least <= rt60_s <= most:
        raise _mistake(text, f"the reverberation time is {seconds}, expected {least:g} to {most:g} s")
    ratio = _decibels(text, level, "direct-to-reverberant ratio") if at else 0.0
    return Part("reverb", "", ratio, rt60_s)


def _decibels(text: str, level: str, what: str) -> float:
    level = level.strip()
    found = re.fullmatch(rf"({_NUMBER})\s*dB", level, re.IGNORECASE)
    if found is None:
        raise _mistake(text, f"the {what} is {level!r}, expected decibels with their unit, as in 5dB or -2.5dB")
    decibels, (least, most) = float(found[1]), SNR_RANGE_DB
    if not least <= decibels <= most:
        raise _mistake(text, f"the {what} is {level}, expected {least:g} to {most:g} dB")
    return decibels + 0.0  # -0 is 0


def _source(text: str, rest: str, example: str) -> str:
    source = rest.removeprefix(":").strip()
    if not rest.startswith(":") or not source or not _short_name(source):
        raise _mistake(text, f"it names no folder, as in {example}")
    return source


def _like_a_number(text: str) -> bool:
    """Whether a text is a number or a time, in whatever notation."""
    if re.fullmatch(r"[+-]?\d+([.,]\d+)?\s*(s|ms|secs?|seconds?|min)?", text, re.IGNORECASE):
        return True
    for part in (text, text[:-1]):
        try:
            float(part)
        except ValueError:
            continue
        return True
    return False


def _written(number: float) -> str:
    return repr(number).removesuffix(".0")


def is_path(source: str) -> bool:
    """Whether a condition names a folder by its path, rather than a set by its name."""
    return source in {".", "..", "~"} or source.startswith(("/", "./", "../", "~/"))


def _short_name(source: str) -> str:
    """The last part of a path, or a name with / turned into -; letters, digits and _.- only."""
    if is_path(source):
        name = os.path.basename(os.path.abspath(os.path.expanduser(source)))
    else:
        name = source.strip().strip("/").replace("/", "-")
    return "".join(
        letter if letter.isalnum() or letter in "_.-" else "_" for letter in unicodedata.normalize("NFC", name)
    )
