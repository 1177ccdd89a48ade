"""The benchmarks are no part of the package: they are found as `python -m` finds them."""

import sys

from documents import ROOT

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last, so that it hides nothing that is installed
