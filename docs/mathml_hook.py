"""Formulas as MathML, made when the site is built: no script and no font is fetched, then or by the reader."""

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.+?)\\\)|\\\[(.+?)\\\])</\1>', flags=re.DOTALL)


def on_page_content(content: str, **_) -> str:
    """Replace what `pymdownx.arithmatex` marked; called by mkdocs for every page."""

    def formula(match: re.Match[str]) -> str:
        inline, display = match.group(2), match.group(3)
        latex = html.unescape(inline or display).strip()
        mathml = convert(latex, display="inline" if inline else "block")
        if "\\" in mathml:  # a command that the converter does not know is passed through as text
            raise PluginError(f"This formula holds a command that cannot be turned into MathML: {latex}")
        return mathml

    return FORMULA.sub(formula, content)
