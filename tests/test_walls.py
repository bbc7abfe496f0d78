"""The walls of the house, held by reading the source: who may import whom, and what may not occur at all."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each layer imports only from itself and from these; the order is that of the design.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "locations": {"errors"},
    "files": {"errors", "locations"},
    # Encoders and fusions of other packages: the two catalogues ask it for names, whatever stage they belong to.
    "plugins": {"errors"},
    "processes": set(),
    "corpora": {"errors", "locations", "files"},
    "audio": {"errors", "locations", "files"},
    "encoders": {"errors", "locations", "files", "plugins", "corpora", "audio"},
    "store": {"errors", "locations", "files", "corpora"},
    "extraction": {"errors", "locations", "files", "processes", "corpora", "audio", "encoders", "store"},
    "fusion": {"errors", "locations", "files", "plugins", "corpora", "store"},
    "training": {"errors", "locations", "files", "processes", "corpora", "store", "fusion"},
    "evaluation": {"errors", "locations", "files", "corpora", "store", "fusion", "training"},
    "studies": {"errors", "locations", "files", "corpora", "store", "fusion", "training", "evaluation", "extraction"},
    "reports": {"errors", "locations", "files", "corpora", "store", "fusion", "training", "evaluation", "studies"},
    # Results put to use: from a recording to a prediction it takes both stages.
    "deployment": {
        "errors", "locations", "files", "processes", "corpora", "audio", "encoders", "store", "extraction", "fusion",
        "training", "evaluation", "studies", "reports",
    },
    # What to do next and what stands in the way looks at everything that leaves traces.
    "guidance": {
        "errors", "locations", "files", "processes", "corpora", "audio", "encoders", "store", "extraction", "fusion",
        "training", "evaluation", "studies", "reports", "deployment",
    },
}  # fmt: skip
STAGE_2 = {"store", "fusion", "training", "evaluation", "studies", "reports"}
STAGE_1_LIBRARIES = {
    "transformers",
    "tokenizers",
    "speechbrain",
    "encodec",
    "torchaudio",
    "soundfile",
    "soxr",
    "tflite",
    "huggingface_hub",
}

# What one library may be imported by (folders or files below pipelines/); everything else must not.
ONLY_IN: dict[str, set[str]] = {
    "geoopt": {"fusion/poincare.py"},
    "transformers": {"encoders"},
    "tokenizers": {"encoders"},
    "jiwer": {"evaluation/word_errors.py"},
    "speechbrain": {"encoders"},
    "encodec": {"encoders"},
    "torchaudio": {"encoders"},
    "tflite": {"encoders"},
    "opensmile": {"encoders"},
    "soxr": {"audio"},
    "zarr": {"store"},
    "obstore": {"locations.py"},
    "gradio": {"deployment"},
    # audformat itself is not imported at all: it unpickles tables and reads YAML that may run code.
    "audb": {"corpora/fetch.py"},
    "audbackend": {"corpora/fetch.py"},
    "audformat": set(),
    "yaml": {"corpora/audformat_folder.py"},
}

HEAVY = {
    "torch",
    "pandas",
    "zarr",
    "sklearn",
    "scipy",
    "transformers",
    "speechbrain",
    "encodec",
    "geoopt",
    "soundfile",
    "pyarrow",
    "obstore",
    "matplotlib",
    "jinja2",
    "gradio",
    "huggingface_hub",
}


@dataclass(frozen=True)
class Module:
    """One source file: its place, its syntax tree, and every module that it imports anywhere, also inside functions."""

    path: Path
    tree: ast.Module
    imports: frozenset[str]

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def layer(self) -> str:
        """``store`` for pipelines/store/embeddings.py, ``errors`` for pipelines/errors.py."""
        return self.path.relative_to(ROOT / "pipelines").parts[0].removesuffix(".py")


def _imports(tree: ast.Module, name: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively, in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "importlib.import_module", "__import__"}:
            yield from (str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant))


@cache
def _modules(package: str) -> tuple[Module, ...]:
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found.append(Module(path, tree, frozenset(_imports(tree, path.name))))
    assert found
    return tuple(found)


def _everything() -> list[Module]:
    return [*_modules("pipelines"), *_modules("hyfuse_cli")]


def _called(node: ast.Call) -> str:
    """``torch.load`` for the call ``torch.load(…)``."""
    parts: list[str] = []
    function: ast.expr = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    parts.append(function.id if isinstance(function, ast.Name) else "…")  # of an expression: not a module's function
    return ".".join(reversed(parts))


def _calls() -> Iterator[tuple[Module, ast.Call]]:
    for module in _everything():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call):
                yield module, node


# ------------------------------------------------------------------------------------------------ who imports whom


def test_every_layer_is_known() -> None:
    """A new folder needs a place in the order."""
    found = {module.layer for module in _modules("pipelines")} - {"__init__"}
    assert found <= set(LAYERS)


def test_the_order_has_no_cycle() -> None:
    seen: set[str] = set()
    for layer, before in LAYERS.items():
        assert before <= seen | {"extraction"}
        seen.add(layer)


def test_layers_import_only_from_layers_before_them() -> None:
    wrong = []
    for module in _modules("pipelines"):
        for name in module.imports:
            parts = name.split(".")
            if parts[0] != "pipelines" or len(parts) < 2 or module.layer == "__init__":
                continue
            if parts[1] in LAYERS and parts[1] not in LAYERS[module.layer] | {module.layer}:
                wrong.append(f"{module.name} imports {name}")
    assert wrong == []


def test_stage_2_touches_neither_audio_nor_encoders() -> None:
    wrong = []
    for module in _modules("pipelines"):
        if module.layer not in STAGE_2:
            continue
        extracts = module.layer == "studies" and any(name.startswith("pipelines.extraction") for name in module.imports)
        for name in module.imports:
            inner = {"pipelines.encoders", "pipelines.audio"} | (set() if extracts else {"pipelines.extraction"})
            if name.split(".")[0] in STAGE_1_LIBRARIES or any(f"{name}.".startswith(f"{wall}.") for wall in inner):
                wrong.append(f"{module.name} imports {name}")
    assert wrong == []


def test_pipelines_knows_nothing_of_the_command_line() -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in _modules("pipelines")
        for name in module.imports
        if name.split(".")[0] in {"hyfuse_cli", "rich", "typer", "click", "argparse"}
    ]
    assert wrong == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_is_imported_where_it_belongs(library: str) -> None:
    importers = set()
    for module in _everything():
        if any(name.split(".")[0] == library for name in module.imports):
            importers.add(module.name.removeprefix("pipelines/"))
    outside = {
        name
        for name in importers
        if not any(name == place or name.startswith(f"{place}/") for place in ONLY_IN[library])
    }
    assert outside == set()


# ------------------------------------------------------------------------------------------------ what may not occur


def test_pipelines_never_prints() -> None:
    wrong = []
    for module in _modules("pipelines"):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and _called(node) in {"print", "pprint", "pprint.pprint", "warnings.warn"}:
                wrong.append(f"{module.name}:{node.lineno} calls {_called(node)}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.stdout", "sys.stderr"}:
                wrong.append(f"{module.name}:{node.lineno} uses {ast.unparse(node)}")
    assert wrong == []


def test_nothing_is_unpickled() -> None:
    """No function that runs code from a file; torch.load only with weights_only=True; numpy never with allow_pickle."""
    forbidden = {
        "pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "dill.load", "dill.loads", "joblib.load",
        "cloudpickle.load", "cloudpickle.loads", "marshal.load", "marshal.loads", "shelve.open", "pd.read_pickle",
        "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "load_hyperpyyaml", "eval", "exec",
        "torch.jit.load", "torch.hub.load", "os.system",
    }  # fmt: skip
    wrong = []
    for module, call in _calls():
        name = _called(call)
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        where = f"{module.name}:{call.lineno}"
        if name in forbidden:
            wrong.append(f"{where} calls {name}")
        if name == "torch.load" and ast.unparse(options.get("weights_only", ast.Constant(None))) != "True":
            wrong.append(f"{where} calls torch.load without weights_only=True")
        if "allow_pickle" in options and ast.unparse(options["allow_pickle"]) != "False":
            wrong.append(f"{where} allows pickles")
        if "trust_remote_code" in options and ast.unparse(options["trust_remote_code"]) != "False":
            wrong.append(f"{where} trusts remote code")
        if "shell" in options and name.startswith("subprocess"):
            wrong.append(f"{where} runs a shell")
    for module in _everything():
        wrong += [
            f"{module.name} imports {name}"
            for name in module.imports
            if name.split(".")[0] in {"pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "hyperpyyaml"}
        ]
    assert wrong == []


def test_errors_are_ours() -> None:
    """``pipelines`` raises no bare Exception and hides none: no ``except: pass``."""
    wrong = []
    for module in _everything():
        for node in ast.walk(module.tree):
            if (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Call)
                and _called(node.exc) in {"Exception", "BaseException"}
            ):
                wrong.append(f"{module.name}:{node.lineno} raises {_called(node.exc)}")
            if isinstance(node, ast.ExceptHandler):
                silent = all(isinstance(line, ast.Pass) for line in node.body)
                broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
                if node.type is None or (silent and broad):
                    wrong.append(f"{module.name}:{node.lineno} catches everything")
    assert wrong == []


def test_every_module_says_what_is_public() -> None:
    wrong = []
    for module in _modules("pipelines"):
        empty = not any(not isinstance(node, ast.Expr) for node in module.tree.body)
        names = {target.id for node in module.tree.body if isinstance(node, ast.Assign) for target in node.targets
                 if isinstance(target, ast.Name)}  # fmt: skip
        if not empty and "__all__" not in names:
            wrong.append(f"{module.name} has no __all__")
        if not empty and ast.get_docstring(module.tree) is None:
            wrong.append(f"{module.name} has no docstring")
    assert wrong == []


# ------------------------------------------------------------------------------------------------ what is loaded


def _loaded(code: str, cwd: Path) -> set[str]:
    """Top-level modules that are loaded after some code ran in a fresh interpreter."""
    script = f"""
import json, sys
try:
    {code}
except SystemExit as end:
    assert not end.code, end.code
print("\\n" + json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["models", "list"], ["models", "show", "wavlm"],
                                       ["transcribe", "--help"], ["models", "show", "minilm"], ["fusions", "list"],
                                       ["fusions", "show", "hyperbolic"], ["models", "check", "--help"],
                                       ["corpora", "list"], ["corpora", "show", "emodb"], ["extract", "--help"],
                                       ["compare", "--help"], ["cache", "--help"],
                                       ["predict", "--help"], ["push", "--help"], ["demo", "--help"]])  # fmt: skip
def test_commands_that_only_tell_load_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    code = f"sys.argv = {['hyfuse', *arguments]!r}; from hyfuse_cli.app import main; main()"
    assert not _loaded(code, tmp_path) & HEAVY


@pytest.mark.parametrize("module", ["pipelines", "pipelines.errors", "pipelines.corpora", "pipelines.corpora.cards",
                                    "pipelines.corpora.layouts", "pipelines.encoders", "pipelines.encoders.catalogue"])  # fmt: skip
def test_catalogues_load_nothing_heavy(tmp_path: Path, module: str) -> None:
    assert not _loaded(f"import {module}", tmp_path) & HEAVY


def test_stage_2_loads_no_encoder_library(tmp_path: Path) -> None:
    """Not even indirectly: training runs on a machine that has none of them."""
    code = "import pipelines.store.embeddings, pipelines.training.grid, pipelines.evaluation.results, pipelines.reports.tables"
    loaded = _loaded(code, tmp_path)
    assert "torch" in loaded
    assert not loaded & STAGE_1_LIBRARIES
