"""`status --watch` on a terminal, redrawn in place with rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from runner.cluster.status import Status, queue_rows, sections
from runner.output import printable

_STYLES = {
    "Running": "green", "Complete": "dim", "Succeeded": "dim", "Failed": "red", "Pending": "yellow",
    "Terminating": "yellow", "Suspended": "yellow",
}  # fmt: skip


def watch(read: Callable[[], Status], interval: float) -> int:
    """Draw the status every `interval` seconds until Ctrl-C."""
    with Live(screen=False, auto_refresh=False) as live:
        while True:
            live.update(draw(read()), refresh=True)
            time.sleep(interval)


def draw(status: Status) -> RenderableType:
    """Return the status as a rich renderable."""
    parts: list[RenderableType] = []
    queues = ("Queue", "Waiting", "In flight", "Expired", "Parked", "Dead", "Oldest lease", "Runners")
    parts.append(_table(f"Queues at {time.strftime('%H:%M:%S')}", queues, queue_rows(status)))
    if status.redis_error:
        parts.append(Text(f"queues: {status.redis_error}", style="red"))
    if status.photos:
        parts.append(Text(printable(str(status.photos)), style="yellow" if status.photos.without_embeddings else "dim"))
    if status.photos_error:
        parts.append(Text(f"photos: {status.photos_error}", style="red"))
    cluster = status.cluster
    if cluster is None:
        parts.append(Text(f"cluster: {status.cluster_error}", style="yellow"))
        return Group(*parts)
    parts.append(Text(f"\nnamespace {printable(f'{cluster.namespace} of {cluster.name}')}", style="bold"))
    parts += [_table("", heading, rows) for heading, rows in sections(cluster) if rows]
    parts += [Text(printable(note), style="yellow") for note in cluster.notes]
    return Group(*parts)


def _table(title: str, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title or None, title_justify="left", box=None, header_style="dim", pad_edge=False)
    for name in heading:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(printable(cell), style=_STYLES.get(cell, "")) for cell in row))
    return table
