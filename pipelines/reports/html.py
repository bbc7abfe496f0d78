"""What the pages of runs and studies share: how a template, the style and one script become a file that loads nothing.

* Every text goes through the template (jinja2 with autoescape) or, for the script, through :func:`as_json`; neither lets a name
  from somebody's file become markup.
* The page's content security policy forbids it to load anything, and to run any script but the one that it was written with, named
  by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["as_code", "as_json", "render", "static_text"]


@cache
def static_text(name: str) -> str:
    """A file of ``reports/static``."""
    return files("pipelines.reports").joinpath("static", name).read_text(encoding="utf-8")


def as_json(value: object) -> str:
    """JSON that can stand in a ``<script>`` element: no letter in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def as_code(text: str) -> Markup:
    """A sentence with what stands between backticks as code; everything is escaped."""
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:  # a backtick in somebody's name
        return escape(text)
    return Markup("").join(Markup(f"<code>{part}</code>") if place % 2 else part for place, part in enumerate(parts))


def render(template: str, context: Mapping[str, Any], *, style: str, script: str) -> str:
    """A page.

    Args:
        template: name in ``reports/static``; it gets ``style``, ``script`` and ``script_hash`` beside the context.
        context: what it shows.
        style: CSS.
        script: JavaScript.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=False, loader=FunctionLoader(static_text)
    )
    environment.filters["code"] = as_code
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    ours = {"style": Markup(style), "script": Markup(script), "script_hash": f"sha256-{digest}"}  # our own files
    return environment.get_template(template).render({**context, **ours})
