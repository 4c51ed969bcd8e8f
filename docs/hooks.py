"""Hooks of the documentation site: the start page, and links to files outside ``docs``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the start page, which is the README."""
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    inside = re.sub(r"\]\(docs/", "](", text)
    outside = re.sub(r"\]\((?!https?:|#|[\w/]+\.(?:md|png|ipynb)|\.\./)([^)]+)\)", r"](../\1)", inside)
    files.append(File.generated(config, "index.md", content=outside))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Replace links to files outside ``docs``, which the site does not contain, by their names."""

    def name(match: re.Match[str]) -> str:
        path = (DOCS / Path(page.file.src_uri).parent / match[2].partition("#")[0]).resolve()
        if not path.exists():
            raise PluginError(f"{page.file.src_path}: {match[2]} does not exist")
        if path.is_relative_to(DOCS):
            return match[0]
        return f"{match[1]} (`{path.relative_to(DOCS.parent)}`)"

    return OUTSIDE.sub(name, markdown)


def on_post_page(output: str, page: Page, config: Any) -> str:
    """Let links of notebooks to other documents lead to the site's pages, as those of Markdown do."""
    if not page.file.src_uri.endswith(".ipynb"):
        return output
    return re.sub(r'href="(\.\./\w+)\.md(#[^"]*)?"', r'href="\1.html\2"', output)
