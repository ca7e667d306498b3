"""Sphinx configuration. The build reads no network: no intersphinx, no fonts or scripts from elsewhere."""

import logging
import re
import warnings
from importlib.metadata import version as installed
from pathlib import Path

warnings.filterwarnings("ignore", category=FutureWarning)  # Pyro's own use of torch.jit
logging.getLogger("arviz").setLevel(logging.WARNING)

project = "pplleak"
author = "pplleak contributors"
copyright = "pplleak contributors"
release = version = installed("pplleak")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["_build", "examples", "gallery"]
suppress_warnings = ["ref.python"]  # a builtin in an annotation (`type`) may also be the name of two fields
autodoc_mock_imports = ["nvflare"]  # an extra that the documentation is built without
default_role = "code"  # our docstrings write `name`, not ``name``

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "show_memory": False,
    "write_computation_times": False,  # a page of its own that differs in every build
    "download_all_examples": False,
    "within_subsection_order": "ExampleTitleSortKey",
}

html_theme = "furo"
html_title = "pplleak"
html_static_path = ["_static"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True, "exclude-members": "arg_constraints, support"}
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False


# -- the API pages: a room a page, an entry a file, by listing the folders --------------------------------------------

HERE = Path(__file__).parent
ROOT = HERE.parent
LIBRARY = ROOT / "pplleak"


def modules(folder: Path, package: str) -> list[str]:
    """Every public module under a folder, by its importable name; a package before its modules."""
    names = []
    for path in sorted(folder.rglob("*.py"), key=lambda p: (*p.parent.parts, "" if p.stem == "__init__" else p.stem)):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] == "__init__":
            names.append(".".join([package, *parts[:-1]]))
        elif not any(p.startswith("_") for p in parts):
            names.append(".".join([package, *parts]))
    return names


def write_page(page: str, title: str, names: list[str]) -> None:
    entry = "## {0}\n\n```{{eval-rst}}\n.. automodule:: {0}\n   :ignore-module-all:\n```\n"
    text = f"# {title}\n\n" + "\n".join(entry.format(name) for name in names)
    path = HERE / "api" / f"{page}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_api_pages() -> None:
    rooms = sorted(p.parent for p in LIBRARY.glob("*/__init__.py"))
    for old in (HERE / "api").rglob("*.md"):
        if old.stem not in {"ground", "models", "inference", "adversaries", *(room.name for room in rooms)}:
            old.unlink()  # of a room that is no more
    for room in rooms:
        write_page(f"rooms/{room.name}", f"pplleak.{room.name}", modules(room, f"pplleak.{room.name}"))
    ground = [f"pplleak.{p.stem}" for p in sorted(LIBRARY.glob("*.py")) if not p.name.startswith("_")]
    write_page("ground", "The ground", ground)
    write_page("models", "Models", modules(ROOT / "models", "pplleak.models")[1:])
    write_page("inference", "Inferences", modules(ROOT / "inference", "pplleak.inference")[1:])


def write_model_table() -> None:
    from pplleak.cli import _model_table

    text = (
        "# Adversaries\n\nWhat each file of `models/` believes, read off its docstring. The same table: "
        f"`uv run pplleak ls --form markdown`.\n\n{_model_table.markdown()}\n\n"
        "## Inferences that are attacks\n\nPublished attacks that are a way to compute, or exact: they work "
        "whatever the model. What was measured is said in "
        f"[published attacks](../published-attacks.md).\n\n{_model_table.inferences()}\n"
    )
    (HERE / "api" / "adversaries.md").write_text(text, encoding="utf-8")


write_api_pages()
write_model_table()


# -- docstrings are written to be read in an editor: equations and columns stay as they stand there -------------------

_COLUMNS = re.compile(r"^\S.*?(?<!\.) {2,}\S|^\|")  # "name      what it is", or a table


def readable(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn indented or columned paragraphs into literal blocks, and escape what reST would take for markup."""
    out: list[str] = []
    for paragraph in "\n".join(lines).split("\n\n"):
        rows = paragraph.split("\n")
        if rows[0].rstrip() in ("Args:", "Raises:", "Returns:"):
            out += [_escape(row) for row in rows]
        elif any(row.startswith(" ") or _COLUMNS.match(row) for row in rows):
            out += ["::", "", *(f"    {row}" for row in rows)]
        else:
            out += [_escape(row) for row in rows]
        out.append("")
    lines[:] = out


def _escape(text: str) -> str:
    """Escape *, | and a trailing _ outside of backticks."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*|\\]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", readable, priority=400)  # before napoleon
