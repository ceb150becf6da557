"""Brings the results pages and notebooks of experiments/ into the site, under their own names.

They are written for the repository. What they link to beside each other and their figures is no
page of the site, so such a link is left as its words. A notebook becomes a page as it was saved,
outputs included; nothing is run.
"""

import posixpath
import re
from pathlib import Path

import nbformat
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PAGES = sorted(page for page in EXPERIMENTS.glob("*.md") if page.name != "README.md")
FIGURES = sorted((EXPERIMENTS / "figures").glob("*.png"))
NOTEBOOKS = sorted((EXPERIMENTS / "notebooks").glob("*.ipynb"))


def on_files(files, config):
    for page in PAGES:
        text = for_site(page.read_text(encoding="utf-8"), "experiments")
        files.append(File.generated(config, f"experiments/{page.name}", content=text))
    for folder, members in (("figures", FIGURES), ("notebooks", NOTEBOOKS)):
        for member in members:
            place = f"experiments/{folder}/{member.name}"
            files.append(File.generated(config, place, abs_src_path=str(member)))
    for notebook in NOTEBOOKS:
        for place, content in page_of(notebook).items():
            place = f"experiments/notebooks/{place}"
            files.append(File.generated(config, place, content=content))
    return files


def page_of(notebook: Path) -> dict[str, str | bytes]:
    """The page of a notebook, and its pictures, by name."""
    cells = nbformat.read(notebook, as_version=4)
    for cell in cells.cells:
        if cell.cell_type == "markdown":
            cell.source = for_site(cell.source, "experiments/notebooks")
    names = {"output_files_dir": f"{notebook.stem}_files"}
    text, resources = MarkdownExporter().from_notebook_node(cells, resources=names)
    title, _, rest = text.lstrip().partition("\n")
    offer = f"[The notebook itself]({notebook.name}), to be run."
    return {f"{notebook.stem}.md": f"{title}\n\n{offer}\n{rest}", **resources["outputs"]}


def for_site(text: str, folder: str) -> str:
    known = {f"experiments/{page.name}" for page in PAGES}
    known |= {f"experiments/figures/{figure.name}" for figure in FIGURES}
    known |= {f"experiments/notebooks/{notebook.name}" for notebook in NOTEBOOKS}

    def kept(link: re.Match) -> str:
        words, target = link.groups()
        file = posixpath.normpath(posixpath.join(folder, target.partition("#")[0]))
        inside = target.startswith("#") or file in known
        return link[0] if inside or "://" in target else words

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", kept, text)
