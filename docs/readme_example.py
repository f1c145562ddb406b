"""Print the Python example of README.md, as one program: the release check runs it where hyprax was installed."""

import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"

if __name__ == "__main__":
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    print("\n".join(blocks))
