"""Plain ``pytest`` does not look for modules in the repository; ``python -m pytest`` does."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
