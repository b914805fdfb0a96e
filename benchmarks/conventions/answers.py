"""What the files beside this one share: `answer` reads calls from the standard input, and prints what each gives.

Runs in the environments of libraries that are old as well as new: no dependency, and syntax of Python 3.8.
"""

import json
import math
import sys
from importlib import metadata

from examples import ARRAYS


def arrays(convert):
    """The examples, each converted; integers stay integers."""
    return {name: convert(x) for name, x in ARRAYS.items()}


def logit(p):
    """Of a list of probabilities, as scores that even float32 takes for certain where they are 0 or 1."""
    return [-1000.0 if x == 0 else 1000.0 if x == 1 else math.log(x) - math.log1p(-x) for x in p]


def answer(package, names):
    """One line a call: the call, and the number or the error, as JSON; before them the version of the package."""
    print(json.dumps(["version", metadata.version(package)]), flush=True)
    for call in json.load(sys.stdin):
        try:
            found = float(eval(call, dict(names)))
        except Exception as error:  # of any library: it is printed instead of the number
            found = f"{type(error).__name__}: {str(error).strip()[:200]}"
        print(json.dumps([call, found]), flush=True)
