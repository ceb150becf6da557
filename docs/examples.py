"""Shows the examples of docstrings as code: Markdown takes their `>>>` for quotations."""

import re

import griffe


def as_code(text: str) -> str:
    """Paragraphs that begin with `>>>`, fenced."""
    paragraphs = re.split(r"\n[ \t]*\n", text)
    return "\n\n".join(
        f"```pycon\n{paragraph.strip()}\n```" if paragraph.lstrip().startswith(">>>") else paragraph
        for paragraph in paragraphs
    )


class Examples(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_code(obj.docstring.value)
