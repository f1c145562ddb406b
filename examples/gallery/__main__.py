"""All pictures of the gallery, or those named: `python -m examples.gallery [NAME ...]`."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
for script in sorted(HERE.glob("[a-z]*.py")):
    if script.stem in sys.argv[1:] or not sys.argv[1:]:
        print(f"== {script.stem}", flush=True)
        try:
            runpy.run_path(str(script), run_name="__main__")
        except ModuleNotFoundError as error:
            print(f"left out: {error}")
