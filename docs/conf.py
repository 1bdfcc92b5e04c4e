"""How Sphinx makes the site of the documentation: `make docs`."""

from __future__ import annotations

import os
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx import addnodes

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

project = "DeepLabV3 on Triton"
author = "The DeepLabV3 on Triton developers"
release = version_of("deeplab-client")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.programoutput"]

# The pages lie beside what they are about, all over the repository, which is the source folder.
root_doc = "docs/index"
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**", "client/*.md", "deploy/**/README.md"),
    *("load_tests/*.md", "model_repository/README.md", "tests/assets/README.md"),
]
exclude_patterns = [".*", "out"]

nb_execution_mode = "off"  # the notebook is committed with its outputs
myst_heading_anchors = 4  # spelled as GitHub spells them

html_theme = "furo"
html_title = f"{project} {release}"
html_extra_path = ["site"]  # a way from the folder to docs/index.html
html_static_path = html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False

# A name in single backticks is a link where it is documented here, else code. No other project's pages are asked for
# theirs: the build needs no network.
nitpicky = True
default_role = "py:obj"
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:class", r"NDArray|_ImageT|(Async)?ClientArguments|(np|os|Image|supervision)\..*"),
]
add_module_names = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"
programoutput_prompt_template = "$ {command}\n{output}"
os.environ["COLUMNS"] = "80"


def unlink_folders(app: Sphinx, document: nodes.document) -> None:
    """Make links to folders plain text, or links to the page in the folder."""
    for link in list(document.findall(addnodes.pending_xref)):
        if link["reftype"] != "myst" or link["refdomain"]:
            continue
        folder, _ = app.env.relfn2path(link["reftarget"].rstrip("/"), app.env.docname)
        if f"{folder}/README" in app.env.found_docs:
            link["refdomain"], link["reftarget"], link["reftargetid"] = "doc", f"{folder}/README", None
        elif (Path(app.srcdir) / folder).is_dir():
            link.replace_self(link.children)


def setup(app: Sphinx) -> None:
    """Connect what no setting does."""
    app.connect("doctree-read", unlink_folders)
