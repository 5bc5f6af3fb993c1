"""Builds the documentation: python -m sphinx -W -b html docs OUT.

Nothing is fetched. FLJAX_NOTEBOOKS=off leaves the notebooks unrun, for a quick look.
"""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]  # experiments is not installed
os.environ.setdefault("PYTHONPATH", str(ROOT))  # of the notebooks' kernels

import fljax  # noqa: E402

project = "fljax"
author = "the fljax authors"
copyright = author
version = release = fljax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "from_code",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints", "**/runs"]

myst_heading_anchors = 4
nb_execution_mode = os.environ.get("FLJAX_NOTEBOOKS", "cache")
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds of a cell
nb_output_stderr = "remove"  # bars of progress
nb_merge_streams = True

highlight_language = "none"  # of blocks that name none
default_role = "literal"  # `name` in docstrings
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them

html_theme = "sphinx_book_theme"
html_title = "fljax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": True,
    "use_fullscreen_button": False,
    **{f"navbar_{part}": [] for part in ("start", "center", "end", "persistent")},
}
