"""Shows run folders in a browser while they run; it reads them alone.

python -m experiments.dashboard runs
python -m experiments.dashboard runs --port=8050 --refresh=2

The page is for this machine alone, at 127.0.0.1. From another one a tunnel leads there:

ssh -L 8050:127.0.0.1:8050 HOST
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from experiments import define, main

INSTALL = "pip install -e '.[dashboard]'"
HOST = "127.0.0.1"

_PORT = define.number(
    "port", 8050, "Of the page; 0: any that is free.", least=0, most=2**16 - 1
)
_REFRESH = define.number(
    "refresh", 2.0, "Seconds between looks at the files.", least=0.2, most=3600
)


def serve(folders: Sequence[str], port: int, seconds: float) -> Any:
    """Makes the server of the page, which answers from `serve_forever` on.

    Args:
      folders: below which the runs are.
      port: of the page; 0: any that is free.
      seconds: between looks at the files.

    Raises:
      ValueError: a folder is none, the port is taken, or the extra is not installed.
    """
    for folder in folders:
        if not os.path.isdir(folder):
            raise ValueError(f"expected a folder with runs below it, got {folder}")
    try:
        from werkzeug import serving

        from experiments.dashboard import page, watch
    except ImportError as error:
        raise ValueError(
            f"expected the extra dashboard, got {error}; {INSTALL}"
        ) from error
    found = watch.Watch(folders)
    threading.Thread(target=found.catch_up, daemon=True).start()
    app = page.make(found, seconds, ", ".join(map(str, folders)))
    with contextlib.closing(socket.socket()) as probe:  # werkzeug's error is 4 lines
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(
                f"--port: expected a free one, got {port} ({error})"
            ) from error

    class Quiet(serving.WSGIRequestHandler):
        """Says nothing of each request."""

        def log_request(self, *_: Any) -> None:
            """Say nothing."""

    return serving.make_server(HOST, port, app.server, True, request_handler=Quiet)


def _main(folders: Sequence[str]) -> None:
    server = serve(folders or ["runs"], _PORT.value, _REFRESH.value)
    print(f"http://{HOST}:{server.server_port}  (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # accelerators are for the runs
    flags.adopt_module_key_flags(define)
    main.run(_main, folders=True)
