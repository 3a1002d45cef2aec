"""The hook of mkdocs.yml: the site has the pages where the repository has them.

MkDocs reads one folder. The pages link to each other across folders (docs/, recipes/, tests/ ...),
so the site's files are listed here, under their paths in the repository: the pages, and the files
and notebooks to which they link.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "recipes/*/RESULTS.md"),
    *("submissions/README.md", "tests/README.md"),
)
LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)")


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the theme, the pages, and the files to which the pages link."""
    pages = {path for pattern in PAGES for path in ROOT.glob(pattern)}
    linked = {
        (page.parent / target).resolve()
        for page in pages
        for _, target in LINK.findall(page.read_text(encoding="utf-8"))
    }
    paths = sorted(pages | {path for path in linked if path.is_file()})
    place = (str(ROOT), config.site_dir, config.use_directory_urls)
    theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files([*theme, *(File(str(path.relative_to(ROOT)), *place) for path in paths)])


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """The page's text; a folder of the repository is no page, so that links to one are its name."""
    folder = Path(page.file.abs_src_path).parent
    return LINK.sub(lambda link: link[1] if (folder / link[2]).is_dir() else link[0], markdown)


def on_page_content(html: str, page: Page, **_: object) -> str:
    """The page's HTML; in notebooks, links to pages, which the plugin leaves as they are."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    return re.sub(r'href="\.\./(docs/[\w-]+)\.md"', r'href="../../\1/"', html)
