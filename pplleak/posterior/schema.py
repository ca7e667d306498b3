"""A posterior in ArviZ's schema: its arrays with their named dimensions, as a DataTree, and as the NetCDF file of one.

The groups are `posterior` (x, y, scalar latents), `sample_stats`, `observed_data` (g), `constant_data` (mode, truth,
log_weights) and `curves`. The file is written through h5netcdf itself, as xarray would write the tree: xarray, which
reads it, takes a fifth of the time to import that torch takes. The tests hold the one to the other.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray

    from pplleak.posterior.posterior import Posterior

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]  # name -> dimensions, values


def groups(posterior: Posterior) -> dict[str, Variables]:
    """Every array, by group and name; a dimension's index is a variable of the dimension's name."""
    x = posterior.x
    event = ("channel", "row", "col") if x.ndim == 6 else tuple(f"axis_{k}" for k in range(x.ndim - 3))
    dims = {n: ("example", *event) for n in ("x", "mode", "truth")}
    dims |= {"y": ("example",), "g": ("entry",), "log_weights": ("weight",)}
    drawn = {"posterior": {"x": x, "y": posterior.y, **posterior.latents}, "sample_stats": posterior.stats}
    known = {"mode": posterior.mode, "truth": posterior.truth, "log_weights": posterior.log_weights}
    made = {name: _indexed(values, dims, ("chain", "draw")) for name, values in drawn.items() if values}
    made["constant_data"] = _indexed({n: v for n, v in known.items() if v is not None}, dims)
    if posterior.g is not None:
        made["observed_data"] = _indexed({"g": posterior.g}, dims)
    if posterior.curves:
        made["curves"] = {n: (tuple(f"{n}_{k}" for k in range(c.ndim)), c) for n, c in posterior.curves.items()}
    return made


def attributes(posterior: Posterior) -> dict[str, Any]:
    """Those of the root: what was run, and what is said of the result."""
    said = {n: _written(v) for n, v in posterior.attrs.items()}
    reasons = json.dumps(posterior.reasons)
    return said | {"kind": posterior.kind, "reasons": reasons, "approximation": posterior.approximation}


def tree(posterior: Posterior) -> xarray.DataTree:
    """The groups as a DataTree."""
    import xarray

    made = xarray.DataTree.from_dict({n: xarray.Dataset(v) for n, v in groups(posterior).items()})
    made.attrs = attributes(posterior)
    return made


def packed(posterior: Posterior) -> bytes:
    """The bytes of the NetCDF file, made in memory: HDF5 crashes on a full disk. What is no index is compressed.

    Truth values are written as xarray writes them, as int8 with an attribute, since NetCDF has none; NaN is the fill
    value of a float.
    """
    import h5netcdf

    content = io.BytesIO()
    with h5netcdf.File(content, "w") as file:
        for name, value in attributes(posterior).items():
            file.attrs[name] = value
        for name, variables in groups(posterior).items():
            group = file.create_group(name)
            group.dimensions = {d: n for dims, v in variables.values() for d, n in zip(dims, v.shape, strict=True)}
            for own, (dims, values) in variables.items():
                kept = values.astype(np.int8) if values.dtype == bool else values
                how = {"compression": "gzip", "compression_opts": 1} if dims and own not in dims else {}
                fill = np.array(np.nan, kept.dtype)[()] if kept.dtype.kind == "f" else None
                variable = group.create_variable(own, dims, kept.dtype, data=kept, fillvalue=fill, **how)
                if values.dtype == bool:
                    variable.attrs["dtype"] = "bool"
    return content.getvalue()


def _indexed(
    values: Mapping[str, np.ndarray], dims: Mapping[str, Sequence[str]], leading: Sequence[str] = ()
) -> Variables:
    """A group as `arviz_base.from_dict` makes it, whose import takes as long as writing the file: dimensions `leading`,
    then the variable's own, `NAME_dim_k` where `dims` has none, and the index of each."""

    def own(name: str, ndim: int) -> Sequence[str]:
        return dims.get(name, [f"{name}_dim_{k}" for k in range(ndim)])

    named = {n: ((*leading, *own(n, v.ndim - len(leading))), v) for n, v in values.items()}
    sizes = {d: size for each, v in named.values() for d, size in zip(each, v.shape, strict=True)}
    return {d: ((d,), np.arange(size)) for d, size in sizes.items()} | named


def _written(value: Any) -> Any:
    """An attribute as NetCDF keeps it: numbers and plain words; anything else, and words that read as JSON, as JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except json.JSONDecodeError:
            return value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return json.dumps(value)
