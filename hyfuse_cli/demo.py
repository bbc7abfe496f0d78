"""``hyfuse demo``: a local page on which a model can be tried."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from hyfuse_cli import console
from hyfuse_cli.export import ModelArgument
from hyfuse_cli.options import Device, WeightsDir

__all__ = ["demo"]


def demo(
    model: ModelArgument,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of 127.0.0.1 to listen on.")] = 7860,
    device: Device = "auto",
    weights_dir: WeightsDir = None,
) -> None:
    """Show a local web page: record or upload, see what the model makes of it; nobody else sees it. Stop it with Ctrl-C."""
    from pipelines.deployment.demo_page import check_gradio, check_port, serve

    check_gradio()
    check_port(port)  # before anything slow

    from pipelines.deployment.hub import model_path
    from pipelines.deployment.predict import load_model
    from pipelines.extraction.engines.local import choose_device

    loaded = load_model(model_path(model), device=str(choose_device(device)), weights_dir=weights_dir)
    with serve(loaded, port=port) as address:
        console.say(f"The page is at {address}; only this computer sees it. Ctrl-C ends it.")
        for warning in loaded.folder.warnings:
            console.out.print(warning, style="bold yellow", markup=False)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            console.say("The page is closed and its recordings are removed.")
