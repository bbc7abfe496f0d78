"""Plug-ins that are wrong in every way that comes to mind: each is named, with its package, and breaks nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pipelines.encoders.catalogue import (
    CATALOGUE,
    encoder_names,
    encoder_plugin_problems,
    encoder_spec,
    load_encoder,
)
from pipelines.encoders.conformance import check_encoder
from pipelines.errors import PluginError, UnknownNameError
from pipelines.fusion.catalogue import FUSIONS, build_head, fusion_names, fusion_plugin_problems, fusion_spec
from pipelines.plugins import ENCODERS, find_plugin, plugin_code
from pipelines.plugins import FUSIONS as FUSION_GROUP
from pipelines.studies.fusion_check import check_fusion
from tests.cli.conftest import Runner
from tests.plugins.packages import by_hand, files_in

BANDS = files_in("own-encoder.md")["hyfuse_bands.py"]
LARGER = files_in("own-fusion.md")["hyfuse_larger.py"]


@pytest.fixture
def offer_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put an encoder's package where Python finds it."""

    def offer(code: str = BANDS, *, module: str = "hyfuse_bands", **entries: str) -> None:
        folder = by_hand(
            tmp_path / module, module, code, group=ENCODERS, entries=entries or {"bands": f"{module}:SPEC"}
        )
        monkeypatch.syspath_prepend(str(folder))

    return offer


@pytest.fixture
def offer_fusion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offer(code: str = LARGER, *, module: str = "hyfuse_larger", **entries: str) -> None:
        folder = by_hand(
            tmp_path / module, module, code, group=FUSION_GROUP, entries=entries or {"larger": f"{module}:SPEC"}
        )
        monkeypatch.syspath_prepend(str(folder))

    return offer


def changed(code: str, old: str, new: str) -> str:
    assert old in code
    return code.replace(old, new)


# -------------------------------------------------------------------------------------------- names and entries


def test_a_broken_package_breaks_only_its_own_name(offer_encoder, hyfuse: Runner) -> None:
    offer_encoder("raise ValueError('no licence file\\nsecond line')")
    assert "bands" in encoder_names()
    listed = hyfuse("models", "list")
    assert listed.status == 0
    assert "of the package hyfuse-bands 1.0" in listed.out
    assert hyfuse("models", "list", "--json").status == 0
    assert hyfuse("models", "show", "wavlm").status == 0
    assert hyfuse("--help").status == 0
    for arguments in (
        ("models", "show", "bands"),
        ("models", "check", "bands"),
        ("extract", "--corpus", "demo", "--model", "bands"),
    ):
        done = hyfuse(*arguments)
        assert done.status == 2, arguments
        assert "package hyfuse-bands 1.0 failed when being imported: ValueError: no licence file." in done.err
        assert "pip uninstall hyfuse-bands" in done.err
        assert "second line" not in done.err


@pytest.mark.parametrize(
    ("code", "entry", "message"),
    [
        ("import nothing_of_that_name", "hyfuse_bands:SPEC", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        (BANDS, "hyfuse_bands:OTHER", "AttributeError: module 'hyfuse_bands' has no attribute 'OTHER'"),
        (BANDS, "not_there:SPEC", "ModuleNotFoundError: No module named 'not_there'"),
        ("raise SystemExit(3)", "hyfuse_bands:SPEC", "SystemExit: 3"),
        (BANDS, "hyfuse_bands:Bands", "which is a class; expected an instance of EncoderSpec"),
        ("SPEC = {'name': 'bands'}", "hyfuse_bands:SPEC", "of the type dict; expected an instance of EncoderSpec"),
        (changed(BANDS, 'name="bands"', 'name="bonds"'), "hyfuse_bands:SPEC", "is named 'bonds'; the two must be the same"),
        (changed(BANDS, 'family="DSP"', 'family="ABC"'), "hyfuse_bands:SPEC", "family 'ABC' is none of RLR, CBR, DSP, LEX"),
        (changed(BANDS, "dim=8", "dim=0"), "hyfuse_bands:SPEC", "dim 0 is not a whole number of at least 1"),
        (changed(BANDS, 'default_representation="bands"', 'default_representation="x"'), "hyfuse_bands:SPEC", "'x' is none of"),
        (changed(BANDS, 'representations=("bands",)', 'representations=("a", "a")'), "hyfuse_bands:SPEC", "different names"),
        (changed(BANDS, "hyfuse_bands:Bands", "hyfuse_bands.Bands"), "hyfuse_bands:SPEC", "is not module:class"),
        (changed(BANDS, "sample_rate_hz=16000", "sample_rate_hz=0"), "hyfuse_bands:SPEC", "sample_rate_hz 0 is not"),
    ],
)  # fmt: skip
def test_entries_that_make_no_sense(offer_encoder, code: str, entry: str, message: str) -> None:
    offer_encoder(code, bands=entry)
    with pytest.raises(PluginError, match=r"hyfuse-bands 1\.0") as caught:
        encoder_spec("bands")
    assert message in str(caught.value)


def test_built_in_names_cannot_be_taken(offer_encoder, offer_fusion, hyfuse: Runner) -> None:
    offer_encoder(wavlm="hyfuse_bands:SPEC", bands="hyfuse_bands:SPEC")
    offer_fusion(concat="hyfuse_larger:SPEC", logistic="hyfuse_larger:SPEC")
    assert encoder_spec("wavlm") is CATALOGUE["wavlm"]
    assert fusion_spec("concat") is FUSIONS["concat"]
    assert encoder_names().count("wavlm") == 1
    (problem,) = encoder_plugin_problems()
    assert "hyfuse-bands 1.0 offers the encoder 'wavlm', a name of hyfuse's own, which stands" in problem
    assert len(fusion_plugin_problems()) == 2
    assert "Left out: The package hyfuse-bands 1.0 offers the encoder 'wavlm'" in hyfuse("models", "list").err
    assert encoder_spec("bands").dim == 8


@pytest.mark.parametrize("name", ["Bands", "two words", "a/b", "hf-x", "a--b", "-x"])
def test_names_are_words(offer_encoder, name: str) -> None:
    offer_encoder(**{name: "hyfuse_bands:SPEC"})
    assert name not in encoder_names()
    with pytest.raises(PluginError, match="lower-case letters, digits"):
        encoder_spec(name)


def test_two_packages_of_one_name(offer_encoder) -> None:
    offer_encoder()
    offer_encoder(module="hyfuse_other", bands="hyfuse_other:SPEC")
    assert "bands" not in encoder_names()
    with pytest.raises(PluginError, match=r"hyfuse-bands 1.0 offers .* and so does hyfuse-other 1.0"):
        encoder_spec("bands")


def test_unknown_names_know_the_plugins(offer_encoder) -> None:
    offer_encoder()
    with pytest.raises(UnknownNameError, match="Did you mean 'bands'"):
        encoder_spec("band")


def test_code_is_known_by_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for number, text in enumerate((BANDS, BANDS, BANDS + "# more\n")):
        folder = by_hand(
            tmp_path / str(number), "hyfuse_bands", text, group=ENCODERS, entries={"bands": "hyfuse_bands:SPEC"}
        )
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder))
            plugin = find_plugin(ENCODERS, "bands", reserved=())
            assert plugin is not None
            digests.append(plugin_code(plugin))
    assert digests[0] == digests[1] != digests[2]
    assert "hyfuse_bands" not in sys.modules


# -------------------------------------------------------------------------------------------- encoders at work


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return cls(spec=spec, weights=info, device=device)", "return cls", "`build` returned a ABCMeta"),
        (
            "return cls(spec=spec, weights=info, device=device)",
            "raise OSError('gone')",
            "failed when being built: OSError: gone",
        ),
        ("class Bands(Encoder):", "class Bands:", "failed when being built: TypeError"),
        ('factory="hyfuse_bands:Bands"', 'factory="hyfuse_bands:Bonds"', "has no attribute 'Bonds'"),
        ("def num_frames", "def frames", "abstract method"),
    ],
)
def test_encoders_that_cannot_be_built(offer_encoder, old: str, new: str, message: str) -> None:
    offer_encoder(changed(BANDS, old, new))
    with pytest.raises(PluginError, match=r"hyfuse-bands 1\.0") as caught:
        load_encoder("bands")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("counts)\n", "counts.int())\n", r"`num_frames` of 'bands' is torch.int32 \[2\]; expected torch.int64 \[2\]"),
        ("counts)\n", "counts - 1)\n", "clip 0 of a batch of 2 came as 49 frames of 'bands', but `num_frames` .* says 50"),
        ('PaddedRepresentation("bands"', 'PaddedRepresentation("bonds"', "yielded 'bonds' where the catalogue entry names 'bands'"),
        (".sum(2) + 1e-6)", ".sum((1, 2))[:, None] + 1e-6)", r"are \[2, 50, 1\]; expected \[B, T, D\] = \[2, T, 8\]"),
        (".sum(2) + 1e-6)", ".sum(2).double() + 1e-6)", "are torch.float64; expected torch.float32"),
        ("yield Padded", "return Padded", "failed when encoding 2 clips of up to 8000 samples: TypeError"),
        ("        yield", "        return\n        yield", "ended before it yielded the representation 'bands'"),
        ("        yield", "        yield 3\n        yield", "yielded a int; expected a PaddedRepresentation"),
        (".view(-1, 160)", ".view(-1, 161)", "failed when encoding 2 clips of up to 8000 samples: RuntimeError"),
        ("return -(-num_samples // 160)", "return num_samples / 160", r"`num_frames\(8000\)` returned 50.0; expected a whole"),
    ],
)  # fmt: skip
def test_encoders_that_break_their_contract(offer_encoder, hyfuse: Runner, old: str, new: str, message: str) -> None:
    offer_encoder(changed(BANDS, old, new))
    encoder = load_encoder("bands")
    with pytest.raises(PluginError, match=message) as caught:
        encoder.encode([torch.zeros(8000), torch.zeros(7999)])
    assert "package hyfuse-bands 1.0" in str(caught.value)


def test_one_representation_too_many(offer_encoder) -> None:
    offer_encoder(BANDS.replace("        yield Padded", "        for _ in range(2): yield Padded"))
    with pytest.raises(PluginError, match="yielded more than the 1 representations"):
        load_encoder("bands").encode([torch.zeros(800)])


def test_lack_of_memory_is_nobody_s_mistake(offer_encoder) -> None:
    offer_encoder(changed(BANDS, "        whole =", "        raise MemoryError\n        whole ="))
    with pytest.raises(MemoryError):
        load_encoder("bands").encode([torch.zeros(800)])


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        ("", "", set()),
        # Normalised over the whole batch.
        ("for clip in batch]  #", "for clip in [c / (1e-3 + max(x.std(correction=0) for x in batch)) for c in batch]]  #",
         {"alone = in a batch"}),
        # The mean over time includes the padding.
        ("batch_first=True)", "batch_first=True) - torch.nn.utils.rnn.pad_sequence(clips, batch_first=True).mean(1, True)",
         {"alone = in a batch"}),
        # Random numbers, as speechbrain's x-vector draws them.
        ("clip, (0,", "clip + 1e-4 * torch.randn(len(clip)), (0,",
         {"alone = in a batch", "same twice", "same with other threads", "same when loaded again"}),
        # Remembers what came before.
        ("        whole = torch",
         "        self.seen = getattr(self, 'seen', 0) + 1\n        clip = clip + 1e-4 * self.seen\n        whole = torch",
         {"alone = in a batch", "same twice", "same with other threads", "same when loaded again"}),
        ("sum(2) + 1e-6", "sum(2)", {"finite numbers"}),
        ("clip in batch]  #", "clip in [x.mul_(0.5) for x in batch]]  #",
         {"shapes and types", "alone = in a batch", "same twice", "same with other threads", "same when loaded again"}),
        ("hop_samples=160", "hop_samples=320", {"number of frames"}),
        ("digest=\"\"", "digest=str(torch.rand(1).item())", {"same when loaded again"}),
    ],
)  # fmt: skip
def test_checks_find_what_is_broken(offer_encoder, old: str, new: str, broken: set[str]) -> None:
    offer_encoder(changed(BANDS, old, new) if old else BANDS)
    assert {check.name for check in check_encoder("bands") if not check.kept} == broken


def test_a_failed_check_is_a_line_and_a_status(offer_encoder, hyfuse: Runner) -> None:
    offer_encoder(changed(BANDS, "dim=8", "dim=9"))
    done = hyfuse("models", "check", "bands")
    assert done.status == 1
    assert "broken" in done.out
    assert "[1, T, 9]" in done.out
    assert "cannot be trusted" in done.err
    assert '"kept": false' in hyfuse("models", "check", "bands", "--json").out


@pytest.mark.parametrize("name", ["wavlm-tiny", "encodec-tiny", "xvector-tiny", "bert-tiny", "descriptors"])
def test_hyfuse_s_own_encoders_pass(name: str) -> None:
    checks = list(check_encoder(name, weights="random"))
    assert [check.name for check in checks if not check.kept] == []
    assert len(checks) == 7
    assert checks[3].worst <= 1e-5


# -------------------------------------------------------------------------------------------- fusions at work


@pytest.mark.parametrize("name", FUSIONS)
def test_hyfuse_s_own_fusions_pass(name: str) -> None:
    assert [check.name for check in check_fusion(name) if not check.kept] == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name="larger"', 'name="smaller"', "is named 'smaller'"),
        (
            'options={"slope": SLOPE}',
            'options={"dropout": SLOPE}',
            "its options dropout have names of settings of training",
        ),
        ('options={"slope": SLOPE}', 'options={"slope": 0.1}', "its options slope are no FusionOption"),
        ("commutative=True", "commutative=True, inputs=1", "it takes 1 inputs; a fusion takes 2"),
        ("import torch\n", "import torchh\n", "No module named 'torchh'"),
    ],
)
def test_fusion_entries_that_make_no_sense(offer_fusion, old: str, new: str, message: str) -> None:
    offer_fusion(changed(LARGER, old, new))
    assert "larger" in fusion_names()
    with pytest.raises(PluginError, match=r"hyfuse-larger 1\.0") as caught:
        fusion_spec("larger")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("super().__init__()", "raise KeyError('x')", "failed when being built: KeyError"),
        ("class LargerHead(nn.Module)", "class Other", "has no attribute 'LargerHead'"),
        ("self.slope = slope", "self.scale = nn.Parameter(torch.ones(1, 1))", r"'scale' of 2 heads is torch.float32 \[1, 1\]"),
        ("self.classify", "self.output", "a StackedLinear named `classify` with 4 outputs"),
        ("return self.classify(", "return self.classify(0 @ ", "failed when fusing: "),
        ("return self.classify(", "return -self.classify(", ""),
        ("        return self.classify(", "        return torch.zeros(2, 3) if True else (", r"returned torch.float32 \[2, 3\]"),
        ("        return self.classify(", "        return None if True else (", "returned NoneType; expected logits"),
        (".mean(-1)  # [H, B]", "", r"recorded 'left_wins' as \[2, 32, 6\]; expected \[H, B\] = \[2, 32\]"),
    ],
)  # fmt: skip
def test_heads_that_break_their_contract(offer_fusion, old: str, new: str, message: str) -> None:
    offer_fusion(changed(LARGER, old, new))

    def use() -> None:
        head = build_head("larger", left_dim=5, right_dim=3, num_classes=4, head_seeds=[0, 1], hidden_dim=6)
        head(torch.zeros(2, 32, 5), torch.zeros(2, 32, 3), record={})

    if not message:
        use()
        return
    with pytest.raises(PluginError, match=message) as caught:
        use()
    assert "hyfuse-larger 1.0" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        ("left > right", "left > right", set()),
        # Heads that see each other.
        ("torch.maximum(left, right)", "torch.maximum(left, right.mean(0, keepdim=True))",
         {"gradients", "alone = in a stack", "trained alone = in a stack"}),
        ("torch.maximum(left, right)", "left", {"gradients", "both inputs count", "trained alone = in a stack"}),
        ("torch.maximum(left, right)", "torch.maximum(left, right).log()",
         {"finite numbers", "gradients", "alone = in a stack", "trained alone = in a stack"}),
        ("self.slope = slope", "self.register_buffer('seen', torch.zeros(3)); self.slope = slope", {"shapes and types"}),
        ("        if record", "        left = left + 1e-3 * torch.randn_like(left)\n        if record",
         {"alone = in a stack", "trained alone = in a stack"}),
    ],
)  # fmt: skip
def test_fusion_checks_find_what_is_broken(offer_fusion, old: str, new: str, broken: set[str]) -> None:
    offer_fusion(changed(LARGER, old, new))
    assert {check.name for check in check_fusion("larger") if not check.kept} == broken


def test_a_failed_fusion_check_is_a_status(offer_fusion, hyfuse: Runner) -> None:
    offer_fusion(changed(LARGER, "torch.maximum(left, right)", "left"))
    done = hyfuse("fusions", "check", "larger")
    assert done.status == 1
    assert "exchanging the right input changes nothing" in done.out
