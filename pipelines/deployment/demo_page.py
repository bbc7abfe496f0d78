"""The demo page: record or upload, see what a model makes of it. A Gradio app on this computer alone.

Bound to 127.0.0.1, no share link, no telemetry, no request to any other host (fonts are the system's). Recordings lie in a folder
of their own, which is removed at the end. One recording is worked on at a time.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.deployment.demo_drawings import (
    STYLE,
    about_html,
    answer_html,
    error_html,
    map_html,
    time_html,
    worth_html,
)
from pipelines.deployment.explain import explain
from pipelines.deployment.predict import Model
from pipelines.errors import ConfigError, HyfuseError, InstallationError

__all__ = ["HOST", "check_gradio", "check_port", "serve"]

HOST = "127.0.0.1"
"""Nobody else in the network sees the page: microphones also work without encryption here."""

_NO_RECORDING = (
    "There is no recording. Upload a file, or record one: the browser asks whether the page may use the microphone. If there is no"
    " microphone, or the browser refuses, upload a file."
)
_PANELS = 4


def check_gradio() -> None:
    """Look whether Gradio is there.

    Raises:
        InstallationError: it is not.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InstallationError("The demo page needs Gradio. Install it with `pip install 'hyfuse[demo]'`.")


def check_port(port: int) -> None:
    """Look whether a port is free.

    Raises:
        ConfigError: it is not.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"Port {port} of {HOST} cannot be used: {reason}. Another program, maybe another demo page, has it. Name another"
                f" one with `--port {port + 1 if port < 65535 else 7860}`."
            ) from error


@contextmanager
def serve(model: Model, *, port: int) -> Iterator[str]:
    """Show the page while the context lasts.

    Args:
        model: that is shown.
        port: to listen on.

    Yields:
        The page's address.

    Raises:
        InstallationError: Gradio is not there.
        ConfigError: the port is taken.
    """
    check_gradio()
    check_port(port)
    with tempfile.TemporaryDirectory(prefix="hyfuse-demo-", ignore_cleanup_errors=True) as folder:
        # Read when Gradio is imported: its folder for uploads, and that it asks nobody for news.
        for name, value in {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }.items():
            os.environ[name] = value
        page = _page(model)
        try:
            _, address, _ = page.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                inbrowser=False,
                prevent_thread_lock=True,
                quiet=True,
                footer_links=[],
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                max_file_size="200mb",
                theme=_theme(),
                css=STYLE,
            )
        except OSError as error:
            raise ConfigError(
                f"The page cannot be served on port {port}: {error}. Name another one with --port."
            ) from error
        try:
            yield str(address)
        finally:
            page.close(verbose=False)


def _theme() -> Any:
    import gradio

    system = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    return gradio.themes.Default(font=system, font_mono=("ui-monospace", "Consolas", "monospace"))


def _page(model: Model) -> Any:
    import gradio

    def recognise(recording: str | None, segment_s: float, transcript: str = "") -> list[str]:
        if not recording:
            return [error_html(_NO_RECORDING), *[""] * (_PANELS - 1)]
        try:
            found = explain(
                model, Path(recording), segment_s=segment_s, transcript=transcript if model.takes_text else None
            )
        except HyfuseError as mistake:
            message = str(mistake).replace(f"{Path(recording).parent}{os.sep}", "")
            return [error_html(message), *[""] * (_PANELS - 1)]
        return [draw(found, model.folder) for draw in (answer_html, time_html, map_html, worth_html)]

    with gradio.Blocks(title=f"hyfuse: {model.folder.name}", analytics_enabled=False) as page:
        gradio.HTML(about_html(model.folder), elem_id="about")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=320):
                recording = gradio.Audio(
                    sources=["upload", "microphone"],
                    type="filepath",
                    label="Recording",
                    buttons=[],
                    editable=False,
                    elem_id="recording",
                )
                transcript = gradio.Textbox(
                    label="What was said", visible=model.takes_text, elem_id="transcript", max_lines=4
                )
                segment = gradio.Slider(
                    0.5, 5.0, value=1.0, step=0.5, label="Seconds per part", visible=not model.takes_text
                )
                button = gradio.Button("Recognise", variant="primary", elem_id="recognise")
                answer = gradio.HTML(elem_id="answer")
                worth = gradio.HTML(elem_id="worth")
            with gradio.Column(scale=3, min_width=320):
                over_time = gradio.HTML(elem_id="time")
                space = gradio.HTML(elem_id="map")
        button.click(
            recognise,
            [recording, segment, transcript],
            [answer, over_time, space, worth],
            api_visibility="private",
            concurrency_limit=1,
        )
    return page
