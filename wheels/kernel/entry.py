"""fastattn as a kernel repository: the package beside this file, under its own name, unless it is installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from fastattn import functional as functional
from fastattn.integrations import layers as layers
