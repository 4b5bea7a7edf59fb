"""For mkdocs: links of the pages to files outside docs/ lead to the file in the repository, if there is one to lead to."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def on_page_markdown(markdown, page, config, files):
    """``[text](../file)`` becomes ``text`` in code style, or a link below ``repo_url`` where mkdocs.yml names one."""
    here = (ROOT / "docs" / page.file.src_uri).parent

    def replaced(match):
        text, target = match[1], match[2].partition("#")[0]
        place = (here / target).resolve()
        if re.match(r"[a-z]+:", target) or not target or place.is_relative_to(ROOT / "docs") or not place.exists():
            return match[0]
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{place.relative_to(ROOT).as_posix()})"
        return text

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", replaced, markdown)
