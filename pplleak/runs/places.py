"""Which executor: this process, processes of this machine, or a Ray cluster."""

from __future__ import annotations

from contextlib import AbstractContextManager

from pplleak.errors import BadInput
from pplleak.runs import cluster as clusters
from pplleak.runs import pool
from pplleak.runs.executors import Workers, serial


def workers(count: int = 1, cluster: str = "") -> AbstractContextManager[Workers]:
    """This process for one worker, as many processes for more; or a Ray cluster, by its address.

    Args:
        cluster: `auto` is the cluster that this machine belongs to, `local` one of `count` workers that is started here
            and ended again, HOST:PORT or ray://HOST:PORT another.

    Raises:
        BadInput: there are no workers; a cluster brings its own; Ray is not there, or no cluster answers.
    """
    if count < 1:
        raise BadInput(f"workers must be at least 1, not {count}")
    if cluster:
        return clusters.ray(cluster, count)
    return serial() if count == 1 else pool.processes(count)
