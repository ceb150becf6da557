"""Formulas without a network: after `npm install --no-save mathjax@3` the site has MathJax in it.

Otherwise the pages ask unpkg.com for the very same file.
"""

from pathlib import Path

from mkdocs.structure.files import File

ELSEWHERE = "https://unpkg.com/mathjax@3/es5/tex-svg.js"
INSTALLED = Path(__file__).parents[1] / "node_modules" / "mathjax" / "es5" / "tex-svg.js"
PLACE = "assets/tex-svg.js"


def on_config(config):
    if INSTALLED.is_file():
        config.extra_javascript = [
            PLACE if script == ELSEWHERE else script for script in config.extra_javascript
        ]
    return config


def on_files(files, config):
    if INSTALLED.is_file():
        files.append(File.generated(config, PLACE, abs_src_path=str(INSTALLED)))
    return files
