"""The one place that writes, and where work runs.

files       a file appears whole or not at all; a folder is proved to be writable before any work is done
locks       one process a folder of results; what killed ones left half written is cleared away (leftovers)
rows        a table that grows: rows are added or replaced by key, and read back as they were
going_on    what a run was made with; rows of other settings are refused
executors   work spread over this process or whatever has a `submit`
places      which: this process, processes of this machine (pool), a Ray cluster (cluster)
"""

from pplleak.runs.executors import Executor, WorkerLost, Workers, serial, shard, spread
from pplleak.runs.files import figure, json, prepare, tensors, text, write
from pplleak.runs.going_on import readable, require_same, settings, settle
from pplleak.runs.locks import claim
from pplleak.runs.places import workers
from pplleak.runs.pool import processes
from pplleak.runs.rows import Rows, read, table

__all__ = [
    "Executor", "Rows", "WorkerLost", "Workers", "claim", "figure", "json", "prepare", "processes", "read",
    "readable", "require_same", "serial", "settings", "settle", "shard", "spread", "table", "tensors", "text",
    "workers", "write",
]  # fmt: skip
