"""Formulas as MathML, made when the site is built, in a font of the site's own: no script, and nothing is fetched.

docs/fonts/hyprax-math.woff2 holds the letters, signs and measures (the table MATH) of Latin Modern Math 1.959, under
the GUST Font License beside it. Without such a table browsers put subscripts on the line.
"""

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.+?)\\\)|\\\[(.+?)\\\])</\1>', flags=re.DOTALL)

# What the converter leaves to the browser, and browsers space or slant otherwise than TeX.
SPACING = (
    (r"<mo>([a-z]{2,})</mo>(?=<mo stretchy=\"false\">&#x00028;)", r'<mo lspace="0.12em" rspace="0">\1</mo>'),  # osc(x)
    (r"<mo>([a-z]{2,})</mo>", r'<mo lspace="0.12em" rspace="0.12em">\1</mo>'),  # max
    (r"<mi>log</mi>", r'<mo lspace="0.12em" rspace="0.12em">log</mo>'),
    (r"<mo>&#x0002F;</mo>", '<mo lspace="0" rspace="0">&#x0002F;</mo>'),  # a / b
    (r'<mo stretchy="false">&#x0007C;</mo>', '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo>'),  # |x|
    (
        r'<mo fence="false" stretchy="false">(&#x02016;|&#x02225;)</mo>',
        r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>',
    ),
    (r"<mi>(&#x003(?:9[1-9A-F]|A[0-9]);)</mi>", r'<mi mathvariant="normal">\1</mi>'),  # capital Greek stands upright
)


def on_page_content(content: str, **_) -> str:
    """Replace what `pymdownx.arithmatex` marked; called by mkdocs for every page."""

    def formula(match: re.Match[str]) -> str:
        inline, display = match.group(2), match.group(3)
        latex = html.unescape(inline or display).strip()
        mathml = convert(latex, display="inline" if inline else "block")
        if "\\" in mathml:  # a command that the converter does not know is passed through as text
            raise PluginError(f"This formula holds a command that cannot be turned into MathML: {latex}")
        for pattern, replacement in SPACING:
            mathml = re.sub(pattern, replacement, mathml)
        return mathml

    return FORMULA.sub(formula, content)
