"""Formulas as MathML, made when the site is built: no script and no font is fetched, then or by the reader."""

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.+?)\\\)|\\\[(.+?)\\\])</\1>', flags=re.DOTALL)


def on_page_content(content: str, **_) -> str:
    """Replace what `pymdownx.arithmatex` marked; called by mkdocs for every page."""

    def formula(match: re.Match[str]) -> str:
        inline, display = match.group(2), match.group(3)
        return convert(html.unescape(inline or display).strip(), display="inline" if inline else "block")

    return FORMULA.sub(formula, content)
