"""Brings the results pages of experiments/ into the site, under their own names.

They are written for the repository. What they link to beside each other and their figures is no
page of the site, so such a link is left as its words.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PAGES = sorted(page for page in EXPERIMENTS.glob("*.md") if page.name != "README.md")
FIGURES = sorted((EXPERIMENTS / "figures").glob("*.png"))
NOTEBOOKS = sorted((EXPERIMENTS / "notebooks").glob("*.ipynb"))


def on_files(files, config):
    for page in PAGES:
        text = for_site(page.read_text(encoding="utf-8"))
        files.append(File.generated(config, f"experiments/{page.name}", content=text))
    for folder, members in (("figures", FIGURES), ("notebooks", NOTEBOOKS)):
        for member in members:
            place = f"experiments/{folder}/{member.name}"
            files.append(File.generated(config, place, abs_src_path=str(member)))
    return files


def for_site(text: str) -> str:
    known = {page.name for page in PAGES} | {f"figures/{figure.name}" for figure in FIGURES}
    known |= {f"notebooks/{notebook.name}" for notebook in NOTEBOOKS}

    def kept(link: re.Match) -> str:
        words, target = link.groups()
        file = target.partition("#")[0]
        return link[0] if not file or file in known or "://" in target else words

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", kept, text)
