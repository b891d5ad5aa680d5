"""`globalcom2 web`."""

from __future__ import annotations

import importlib.util
import signal
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from globalcom2.cli.options import Attention, Debug, Device, Dtype, Model
from globalcom2.cli.output import notes
from globalcom2.errors import InputError

if TYPE_CHECKING:
    from globalcom2.web.uploads import Limits


def web(
    model: Model = "mini",
    host: Annotated[
        str, typer.Option(help="Address to listen on. The default is reached from this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on, or the next free one.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
    queue: Annotated[int, typer.Option(min=1, help="Questions that may wait; a further one is refused.")] = 16,
    max_upload_mb: Annotated[float, typer.Option(help="Largest picture, in MB.")] = 10.0,
    max_pixels: Annotated[int, typer.Option(help="Most pixels of a picture.")] = 25_000_000,
    allow_models: Annotated[
        bool, typer.Option("--allow-models", help="Let visitors name a model, which this machine then downloads.")
    ] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    debug: Debug = False,
) -> None:
    """Open a page: your own picture and question, methods side by side, and what they kept."""
    for flag, value in (("--max-upload-mb", max_upload_mb), ("--max-pixels", max_pixels)):
        if not value > 0:
            raise InputError(f"{flag} must be positive, got {value}.")
    from globalcom2.web.addresses import free_port, is_loopback  # noqa: PLC0415

    chosen = free_port(host, port)
    if importlib.util.find_spec("gradio") is None:
        raise InputError(
            "gradio must be installed for the page, got none. Run: pip install '.[web]' in a clone of globalcom2."
        )
    if chosen != port:
        notes.print(f"Port {port} is taken: using {chosen}.", highlight=False)
    if not is_loopback(host):
        notes.print(_open_to_others(host, allow_models), highlight=False)
    with notes.status("Loading torch, transformers and gradio"):
        from globalcom2.hf.loading import load_model  # noqa: PLC0415
        from globalcom2.web.uploads import Limits  # noqa: PLC0415

        limits = Limits(upload_mb=max_upload_mb, pixels=max_pixels)
    if model != "mini":
        notes.print(f"Loading {model}", highlight=False)

    def load(name: str) -> tuple[Any, Any]:
        return load_model(name, dtype, device, attn)

    with _running(model, load, limits, max_new_tokens, allow_models, queue, (host, chosen)) as address:
        _keep_open(address, open_browser)


@contextmanager
def _running(
    name: str,
    load: Callable[[str], tuple[Any, Any]],
    limits: Limits,
    max_new_tokens: int,
    allow_models: bool,
    queue: int,
    place: tuple[str, int],
) -> Iterator[str]:
    """The page's server, listening at a host and port; gives its address."""
    from globalcom2.web.serving import launch, private_folder  # noqa: PLC0415

    with private_folder() as folder:
        network, processor = load(name)
        with notes.status("Building the page"):
            from globalcom2.web.answering import Answering, Models  # noqa: PLC0415
            from globalcom2.web.app import build, look  # noqa: PLC0415

            models = Models(name, network, processor, load, allow_models)
            page = build(Answering(models, limits, max_new_tokens), queue)
            address = launch(page, look(), folder, limits, *place)
        yield address
        page.close(verbose=False)


def _open_to_others(host: str, allow_models: bool) -> str:
    more = " Visitors may make it download models, too." if allow_models else ""
    return (
        f"Warning: {host} may be reached from other machines. There is no password: whoever reaches the page can use this "
        f"machine's model.{more} Put a proxy with a password in front of it, or leave --host out."
    )


def _keep_open(address: str, open_browser: bool) -> None:
    """Show the page's address, and wait for SIGTERM or Ctrl-C, so that the folder of uploads is deleted after both."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())  # before anybody knows that the page is there
    typer.echo(f"The page: {address}\nStop it with Ctrl-C.")
    if open_browser:
        webbrowser.open(address)
    try:
        stop.wait()
    except KeyboardInterrupt:
        notes.print("Stopped.")
