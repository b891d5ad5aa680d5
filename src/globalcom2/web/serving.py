"""Starts and stops the page's server: its folder of uploads, its gate, and gradio's switches."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from globalcom2.web.addresses import is_loopback
from globalcom2.web.gate import Gate
from globalcom2.web.uploads import Limits

VISITORS = 64
"""Of how many gradio may keep a question in memory at once."""
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_NUM_WORKERS": "0"}
"""gradio and huggingface_hub ask home for nothing."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for this server's uploads that only its user may read; deleted with all in it at the end.

    gradio takes it from the process's environment, so a process runs one page at a time.
    """
    folder = Path(tempfile.mkdtemp(prefix="globalcom2-web-")).resolve()
    changed = {**QUIET, "GRADIO_TEMP_DIR": str(folder)}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


def launch(page: Any, look: dict[str, Any], folder: Path, limits: Limits, host: str, port: int) -> str:
    """Start a page's server in a thread.

    Args:
        page: What `globalcom2.web.app.build` made, within `private_folder`.
        look: gradio's arguments for theme and style.
        folder: The folder of uploads.
        limits: What visitors may hand in.
        host: Address to listen on.
        port: Port to listen on, free.

    Returns:
        The page's address.
    """
    hosts = LOOPBACK_NAMES if is_loopback(host) else ()

    def forget(session: str) -> None:
        # gradio would keep the question and its answers in memory; nothing here reads them again.
        page.app.state_holder.session_data.pop(session, None)

    guard = {"folder": str(folder), "upload_bytes": limits.upload_bytes, "hosts": hosts, "delivered": forget}
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        max_file_size=limits.upload_bytes,
        app_kwargs={"middleware": [_middleware(guard)]},
        allowed_paths=[],
        blocked_paths=[str(path) for path in _never_served() if not folder.is_relative_to(path)],
        state_session_capacity=VISITORS,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        pwa=False,
        show_error=False,
        strict_cors=True,
        footer_links=[],
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        **look,
    )
    return str(address)


def _never_served() -> list[Path]:
    """A second lock behind the gate, where an upload lies in none of them."""
    return [Path.home(), Path.cwd(), Path(__file__).parents[1], Path("/etc"), Path("/proc")]


def _middleware(guard: dict[str, Any]) -> Any:
    from starlette.middleware import Middleware  # type: ignore[import-not-found]  # noqa: PLC0415 - gradio's

    return Middleware(Gate, **guard)
