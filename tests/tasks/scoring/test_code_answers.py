"""Answers as models write them: the code in them is found, and what is wrong stays wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcomm.tasks.scoring.code import public_report, score_code
from kvcomm.tasks.scoring.parsing import fault
from kvcomm.tasks.scoring.program import complete, extract_code
from kvcomm.tasks.scoring.sandbox import Limits, Sandbox, find_sandbox

PROMPT = '''from typing import List


def total(xs: List[int]) -> int:
    """ Sum of a list.
    >>> total([1, 2])
    3
    """
'''
TESTS = """

METADATA = {}


def check(candidate):
    assert candidate([1, 2, 3]) == 6
    assert candidate([]) == 0
    assert candidate([-1, 5]) == 4
"""
DEF = "def total(xs):\n    return sum(xs)\n"
BAD = "def total(xs):\n    return len(xs)\n"
LOOP = "    r = 0\n    for x in xs:\n        r += x\n    return r\n"
ZWSP, BOM, NBSP = "\u200b", "\ufeff", "\u00a0"

RIGHT = {
    # no fence, prose around
    "prose behind": f"{DEF}\nIt just returns the sum.\n",
    "prose around": f"The code is as follows:\n\n{DEF}\nIt returns the sum of the list.\n",
    "a list behind": f"{DEF}\nExplanation:\n- sum adds them.\n",
    "a word behind that parses": f"{DEF}\nExplanation\n\nIt sums.\n",
    "a note behind that parses": f"{DEF}\nComplexity: O(n)\n",
    "a word before that parses": f"Solution\n\n{DEF}",
    "an apostrophe behind": f"{DEF}\nIt doesn't need a loop (sum has one.\n",
    "quotes behind": f'{DEF}\nThe """ are left out.\n',
    "a heading around": f"# Solution\n\n{DEF}\n## Explanation\n\n1. It sums.\n",
    "imports before it": f"Sure!\n\nimport math\n\n{DEF.replace('sum', 'math.fsum')}\nThat's it.",
    "a helper before it": f"Sure!\n\ndef add(a, b):\n    return a + b\n\n\ndef total(xs):\n{LOOP}\nOk?",
    "code broken off behind": f"{DEF}\n\ndef test_total():\n    assert total([1",
    "a docstring at the margin": 'So:\ndef total(xs):\n    """Sum\nof all.\n\n"""\n    return sum(xs)\n\nYes.',
    "brackets at the margin": "So:\ndef total(\n    xs,\n):\n    return sum(\n        xs\n    )\nYes.",
    "else at the margin": f"try:\n    import numpy\nexcept ImportError:\n    numpy = None\n\n{DEF}\nYes.",
    "prose that begins with else": f"{DEF}\nelse it would fail.\n",
    "Windows line ends": f"Here:\n\n{DEF}\nIt sums.\n".replace("\n", "\r\n"),
    # a closing fence alone
    "function, closing fence": f"{DEF}```",
    "prose, function, closing fence, prose": f"Here is the function:\n\n{DEF}```\nDone.",
    "body, closing fence": "    return sum(xs)\n```\n",
    "body, closing fence, prose": f"{LOOP}```\n\nThis sums the list.",
    "closing fence of tildes": f"{DEF}~~~",
    "closing fence, indented": "    return sum(xs)\n    ```\n",
    "closing fence behind the last line": "def total(xs):\n    return sum(xs)```",
    "closing fence, then another block": f"{DEF}```\n\nUse it:\n```python\nprint(total([1]))\n```",
    # tags
    "[PYTHON]": f"[PYTHON]\n{DEF}[/PYTHON]\n",
    "<code>": f"<code>\n{DEF}</code>",
    "<code> on the line of the code": f"<code>{DEF.rstrip()}</code>",
    "<pre><code>": f'<pre><code class="language-python">\n{DEF}</code></pre>',
    "[PYTHON] and a body": "[PYTHON]\n    return sum(xs)\n[/PYTHON]\n",
    "a tag on the line of an import": "<code>from math import fsum\n\ndef total(xs):\n    return fsum(xs)\n</code>",
    "a fence within tags": f"<answer>\n```python\n{DEF}```\n</answer>",
    "the end of a generation": f"{DEF.rstrip()}<|endoftext|>",
    "</s>": f"{DEF}</s>",
    # a fence inside a line
    "a fence behind prose": f"Here is the code: ```python\n{DEF}```",
    "a fence without language behind prose": f"Here is the code: ```\n{DEF}```",
    "a fence of tildes behind prose": f"Code: ~~~python\n{DEF}~~~\nDone.",
    "a fence behind prose, a body": "The body is ```python\n    return sum(xs)\n```",
    "code on the fence's line": f"```python {DEF}```",
    "code on the fence's line, no language": f"```{DEF}```",
    "a fence in one line": "It is ```total = lambda xs: sum(xs)``` then.",
    "an info string": f'```python title="total.py"\n{DEF}```',
    # fences inside the code
    "a fence in the docstring": f'```python\ndef total(xs):\n    """Sum.\n\n    ```\n    total([1])\n    ```\n    """\n{LOOP}```',
    "a longer fence around": f'````python\ndef total(xs):\n    """Sum.\n\n    ```\n    total([1])\n    ```\n    """\n{LOOP}````',
    "a language in the docstring": f'```python\ndef total(xs):\n    """Sum.\n\n    ```python\n    total([1])\n    ```\n    """\n{LOOP}```',
    "one fence in the docstring": f'```python\ndef total(xs):\n    """Sum.\n    ```\n    """\n{LOOP}```\nDone.',
    "a fence at the margin of a string": f'```python\nHELP = """\n```\ntotal([1])\n```\n"""\n\n{DEF}```',
    "a fence in a string of one line": f'```python\nFENCE = "```"\n\n{DEF}```',
    "a fence of another sign around": f'~~~python\ndef total(xs):\n    """\n    ```\n    """\n{LOOP}~~~',
    "a fence in the docstring, no fence around": f'def total(xs):\n    """Sum.\n\n    ```\n    total([1])\n    ```\n    """\n{LOOP}',
    "a fence in a fence": f"````markdown\n```python\n{DEF}```\n````",
    # a body with other code behind it
    "body, def": "    return sum(xs)\n\n\ndef main():\n    print(total([1]))\n",
    "body, import, class": "    return sum(xs)\n\n\nimport os\n\nclass A:\n    pass\n",
    "body, its helper": "    return add(xs)\n\n\ndef add(xs):\n    return sum(xs)\n",
    "body, a call": f"{LOOP}\n\nprint(total([1, 2]))\n",
    "body, def broken off": f"{LOOP}\n\ndef other(x):\n    return (",
    "body, prose": f"{LOOP}\nIt adds them one by one.\n",
    "prose, body, prose": f"The completion:\n\n{LOOP}\nIt adds them.\n",
    "body, guard": f'{LOOP}\n\nif __name__ == "__main__":\n    print(total(input()))\n',
    "fenced body, def": f"```python\n{LOOP}\n\ndef main():\n    pass\n```",
    "body of two spaces, def": "  r = sum(xs)\n  return r\n\n\ndef main():\n    pass\n",
    "body, the function again": f"    return 0\n\n\n{DEF}",
    # indentation
    "body, first line stripped": "return sum(xs)\n",
    "fenced body, first line stripped": f"```python\n{LOOP.strip()}\n```",
    "body of several lines, first line stripped": LOOP.strip(),
    "body, first line stripped, def": f"{LOOP.strip()}\n\n\ndef main():\n    pass\n",
    "body, its first line a loop, stripped": "for x in xs:\n        if not x: continue\n    return sum(xs)",
    "body of five spaces": "     r = 0\n     for x in xs:\n         r += x\n     return r\n",
    "body of two spaces": "  r = 0\n  for x in xs:\n    r += x\n  return r\n",
    "body of tabs": "\tr = 0\n\tfor x in xs:\n\t\tr += x\n\treturn r\n",
    "fenced body of tabs": "```python\n\tr = 0\n\tfor x in xs:\n\t\tr += x\n\treturn r\n```",
    "body at the margin": "```python\nr = 0\nfor x in xs:\n    r += x\nreturn r\n```",
    "function in a fence, indented": "1. Code:\n\n```python\n    def total(xs):\n        return sum(xs)\n```",
    "fence indented, function not": f"1. Code:\n\n    ```python\n{DEF}    ```",
    "fence and function indented": "1. Code:\n\n   ```python\n   def total(xs):\n       return sum(xs)\n   ```",
    "fence indented, body not": f"1. Code:\n\n        ```python\n{LOOP}        ```",
    "an indented function after prose": "The code is:\n\n    def total(xs):\n        return sum(xs)\n\nIt sums.",
    "functions indented, first line stripped": "```python\ndef add(a):\n        return sum(a)\n\n    def total(xs):\n        return add(xs)\n```",
    "a string at the margin of a body": '    t = """\na"""\n    assert t[:2] == "\\na"\n    return sum(xs)\n',
    # main guards
    "unittest": f'```python\nimport unittest\n\n{DEF}\n\nclass TestTotal(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(total([1]), 1)\n\n\nif __name__ == "__main__":\n    unittest.main()\n```',
    "input": f'```python\n{DEF}\nif __name__ == "__main__":\n    xs = list(map(int, input().split()))\n    print(total(xs))\n```',
    "a guard the other way round": f"{DEF}\nif '__main__' == __name__:\n    raise SystemExit(total([1]))\n",
    "a wrong example under the guard": f'{DEF}\nif __name__ == "__main__":\n    assert total([1]) == 2\n',
    "an exit under the guard": f'import sys\n\n{DEF}\nif __name__ == "__main__":\n    sys.exit(0)\n',
    # several blocks
    "imports in a block before": "First the imports:\n```python\nfrom functools import reduce\n```\nThen:\n```python\ndef total(xs):\n    return reduce(lambda a, b: a + b, xs, 0)\n```",
    "a helper in a block before": "```python\ndef add(a, b):\n    return a + b\n```\nand\n```python\ndef total(xs):\n    r = 0\n    for x in xs:\n        r = add(r, x)\n    return r\n```",
    "a helper and its import before": "```python\nimport math\n```\n```python\ndef add(xs):\n    return math.fsum(xs)\n```\n```python\ndef total(xs):\n    return add(xs)\n```",
    "a constant in a block before": "```python\nSTART = 0\n```\n```python\ndef total(xs):\n    return sum(xs, START)\n```",
    "all of a module before": "```python\nfrom math import *\n```\n```python\ndef total(xs):\n    return fsum(xs)\n```",
    "a helper in a block behind": "```python\ndef total(xs):\n    return add(xs)\n```\nwith\n```python\ndef add(xs):\n    return sum(xs)\n```",
    "imports before a body": "```python\nfrom math import fsum\n```\n```python\n    return fsum(xs)\n```",
    "imports before a body at the margin": "```python\nfrom math import fsum\n```\n```python\nreturn fsum(xs)\n```",
    "an import that is not there and not needed": f"```python\nimport numpy as np\n```\n```python\n{DEF}```",
    "a use behind that is not run": f"```python\n{DEF}```\n```python\nprint(total(1, 2, 3))\n```",
    "a result behind that is not run": f"```python\ndef total(xs):\n    result = sum(xs)\n    return result\n```\n```python\nresult = total(None)\n```",
    "a wrong draft before": f"```python\n{BAD}```\nBetter:\n```python\n{DEF}```",
    "the stub before the body": f'```python\ndef total(xs):\n    """Sum."""\n```\nThe body:\n```python\n{LOOP}```',
    # bound in another way
    "a method": "```python\nclass S:\n    def total(self, xs):\n        return sum(xs)\n\ntotal = S().total\n```",
    "a lambda": "```python\ntotal = lambda xs: sum(xs)\n```",
    "an alias": "```python\ndef add(xs):\n    return sum(xs)\n\ntotal = add\n```",
    "an import": "from math import fsum as total\n",
    "an annotated name": "from typing import Callable\n\ntotal: Callable = lambda xs: sum(xs)\n",
    "a class": "class total(int):\n    def __new__(cls, xs):\n        return sum(xs)\n",
    "a tuple": "```python\ntotal, other = sum, len\n```",
    "a branch": "```python\nif True:\n    def total(xs):\n        return sum(xs)\n```",
    "a try": "try:\n    from fast import total\nexcept ImportError:\n    def total(xs):\n        return sum(xs)\n",
    "a decorated function": "import functools\n\n@functools.wraps(sum)\ndef total(xs):\n    return sum(xs)\n",
    "a lambda that calls itself": "total = lambda xs: xs[0] + total(xs[1:]) if xs else 0",
    # imports from the future
    "futures over several lines": f"```python\nfrom __future__ import (\n    annotations,\n)\n{DEF}```",
    "futures behind a docstring": f'```python\n"""Sums."""\n\nfrom __future__ import annotations\nimport os\n\n{DEF}```',
    "two lines of futures": f"from __future__ import annotations\nfrom __future__ import division\n\n{DEF}",
    "futures in a block before": f"```python\nfrom __future__ import annotations\nimport math\n```\n```python\ndef total(xs):\n    return math.fsum(xs)\n```",
    "futures and a comment": f"from __future__ import (  # (\n    annotations)  # )\n{DEF}",
    # prose that begins like code
    "from the": f"from the examples we see that it is a sum.\n\n{DEF}",
    "@user": f"@user here you go:\n{DEF}",
    "import the": f"import the function and use it:\n\n{DEF}\nimport it where you like.",
    "class of": f"class of problem: sums.\n\n{DEF}\nclass dismissed.",
    "def is": f"def is short for define.\n\n{DEF}",
    "for each": f"for each x, add it:\n\n{DEF}\nwith sum it is short.",
    "return": f"{DEF}\nreturn the sum, that is all.",
    # signs
    "a byte order mark": f"{BOM}{DEF}",
    "a byte order mark before an import": f"{BOM}import math\n\ndef total(xs):\n    return math.fsum(xs)",
    "a session": "```python\n>>> def total(xs):\n...     return sum(xs)\n```",
    "a session with a use": "```\n>>> import math\n>>> def total(xs):\n...     return math.fsum(xs)\n...\n>>> total([1, 2])\n3.0\n```",
    "an invisible space before the function": f"{ZWSP}{DEF}",
    "an invisible space before the fence": f"{ZWSP}```python\n{DEF}{ZWSP}```",
    "an invisible space in the code": f"```python\ndef total(xs):\n    return{ZWSP} sum(xs)\n```",
    "spaces that do not break": DEF.replace(" ", NBSP),
    "a quote": "> ```python\n> def total(xs):\n>     return sum(xs)\n> ```",
}

WRONG = {
    "nothing": "",
    "prose": "I cannot do that.",
    "one word": "total",
    "prose behind a wrong function": f"{BAD}\nIt returns the sum: sum(xs).\n",
    "a closing fence behind a wrong function": f"{BAD}```",
    "a closing fence behind a wrong body": "    return len(xs)\n```",
    "tags around a wrong function": f"[PYTHON]\n{BAD}[/PYTHON]",
    "a wrong function behind prose and fence": f"Here: ```python\n{BAD}```",
    "the right code is in the docstring": '```python\ndef total(xs):\n    """Sum.\n\n    ```python\n    return sum(xs)\n    ```\n    """\n```',
    "the right function is in the docstring": f'```python\ndef total(xs):\n    """\n```\n{DEF}```\n    """\n    return len(xs)\n```',
    "the right function is in a string": f'```python\nGOOD = """\n{DEF}"""\n\n{BAD}```',
    "a wrong body with other code behind": "    return len(xs)\n\n\ndef main():\n    return sum(xs)\n",
    "an empty body with other code behind": "    pass\n\n\nimport os\n",
    "other code only": "def main():\n    return sum([1])\n",
    "a body that is broken in the middle": "    r = = 0\n    return sum(xs)\n",
    "a body whose bracket is open": "    x = foo(\n    return sum(xs)\n",
    "a body that goes on broken": "    return sum(xs)\n    x = = 3\n",
    "a function that is broken": "def total(xs):\n    x = = 3\n    return sum(xs)\n",
    "a function with a bracket open": "def total(xs):\n    return sum(xs\n",
    "a function with a string open": 'def total(xs):\n    return sum(xs)\n    """\n',
    "a string open at the end": f'{BAD}\nx = """',
    "a decorator at the end": f"{BAD}\n@property",
    "indentation that fits nothing": "```python\ndef total(xs):\n    r = 0\n      for x in xs:\n    return r\n```",
    "a return at the margin": "def total(xs):\n    r = sum(xs)\nreturn r\n",
    "an unguarded unittest": f"import unittest\n{DEF}\nunittest.main()\n",
    "an unguarded exit": f"{DEF}\nraise SystemExit(0)\n",
    "a guard under another name": f'{BAD}\nif __name__ != "__main__":\n    raise SystemExit(0)\n',
    "an exit in the function": "import os\n\ndef total(xs):\n    os._exit(0)\n",
    "a function that exists under the guard only": f'if __name__ == "__main__":\n    def total(xs):\n        return sum(xs)\n',
    "a right draft before": f"```python\n{DEF}```\nBetter:\n```python\n{BAD}```",
    "a right import, a wrong function": f"```python\nfrom math import fsum\n```\n```python\n{BAD}```",
    "a missing import": "def total(xs):\n    return reduce(lambda a, b: a + b, xs, 0)\n",
    "a method only": "class S:\n    def total(self, xs):\n        return sum(xs)\n",
    "a static method only": "class S:\n    @staticmethod\n    def total(xs):\n        return sum(xs)\n",
    "a static method of a broken class": "class S(:\n    @staticmethod\n    def total(xs):\n        return sum(xs)\n",
    "an inner function only": "def main():\n    def total(xs):\n        return sum(xs)\n    return total\n",
    "a number": "total = 6\n",
    "a wrong lambda": "total = lambda xs: len(xs)",
    "an import that is not there": "from solution import total\n",
    "an annotation only": "total: int\n",
    "futures and a wrong function": f"from __future__ import (\n    annotations,\n)\n{BAD}",
    "prose like code and a wrong function": f"from the examples: a sum.\n\n{BAD}",
    "a session with a wrong function": "```\n>>> def total(xs):\n...     return len(xs)\n```",
    "a right call of the tests' own": f"{BAD}\ndef check(candidate):\n    pass\n",
    "the prompt as it was": PROMPT,
    "the prompt as it was, fenced": f"```python\n{PROMPT}```",
    "the prompt and nothing more": f"{PROMPT}    pass\n",
    "another language": "```js\nconst total = (xs) => xs.reduce((a, b) => a + b, 0)\n```",
}


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return find_sandbox(allow_unsandboxed=True)


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT.keys())
def test_right_answers_pass(sandbox: Sandbox, text: str) -> None:
    score = score_code(sandbox, text, PROMPT, "total", TESTS, Limits(seconds=5))
    assert score.correct, score


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_wrong_answers_fail(sandbox: Sandbox, text: str) -> None:
    score = score_code(sandbox, text, PROMPT, "total", TESTS, Limits(seconds=5))
    assert not score.correct, score
