"""Writes the blocking client out of the one that awaits: `python scripts/blocking_client.py`. They differ in the words of Python
that wait and in httpx2's names of the same things, so only one of them is written by hand. A test compares.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[1] / "src" / "kybernate" / "client"
SOURCE, TARGET = CLIENT / "asynchronous.py", CLIENT / "blocking.py"
HEAD = '''"""The client that blocks; the command line uses it.

Made of asynchronous.py by scripts/blocking_client.py: change that, then run this.
"""
'''
_WORDS = {
    "AsyncClient": "Client",
    "AsyncHTTPTransport": "HTTPTransport",
    "AsyncIterator": "Iterator",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aclose": "close",
    "aiter_bytes": "iter_bytes",
    "aiter_lines": "iter_lines",
    "aread": "read",
    "asynccontextmanager": "contextmanager",
}


def blocking(text: str) -> str:
    """The blocking client's text for that of the other."""
    text = HEAD + text.split('"""\n', 1)[1]
    text = re.sub(r"\(await (.+)\)\.(\w+)$", r"\1.\2", text, flags=re.MULTILINE)
    text = re.sub(r"\b(?:async|await) ", "", text)
    text = re.sub(r"\b(?:" + "|".join(_WORDS) + r")\b", lambda word: _WORDS[word[0]], text)
    text = re.sub(r"for (\w+) in (.+):\n +yield \1\n", r"yield from \2\n", text)
    ruff = [str(Path(sys.executable).with_name("ruff")), "format", "--stdin-filename", str(TARGET), "-"]
    return subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    TARGET.write_text(blocking(SOURCE.read_text()))
