"""pobench watch: a page that shows what a command does while it runs."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path
from typing import Annotated

import typer

from pobench.cli.group import STYLE
from pobench.cli.options import Debug, Runs
from pobench.cli.terminal import err, escape, out

app = typer.Typer(**STYLE)


@app.command()
def watch(
    runs: Runs = Path("runs"),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On this machine; 0 finds a free one.", show_default=True)
    ] = 0,
    debug: Debug = False,
) -> None:
    """Show in a browser what a command does while it runs: its jobs, curves, alarms and the time left; in the end its report.

    It answers on this machine alone; from another one, through an SSH tunnel, whose line it prints. Ctrl-C ends it, and nothing
    else.
    """
    from pobench.workflows.watch import ADDRESS, make_server

    with make_server(runs, port) as server:
        own = server.server_port
        out.print(f"http://{ADDRESS}:{own}/", highlight=False)
        name = f"{getpass.getuser()}@{socket.gethostname()}"
        tunnel = f"from another machine: ssh -N -L {own}:{ADDRESS}:{own} {name}   and the same address there"
        err.print(escape(tunnel), highlight=False)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            err.print("the page has ended; the command that it showed goes on")
