"""Escaping for terminals and logs: what would steer them is shown, never obeyed.

Names of files, words of servers and of captions come from elsewhere. A newline in them could forge
a line of the log, an escape sequence could clear the screen or rename the window, and marks of
direction could turn a name round.
"""

import re

# Controls but for the tab, separators of lines, marks of direction, halves of surrogate pairs, and
# newlines before anything but the indentation that our own lists have.
_STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    r"|\n(?!  )"
)


def escape(text: str) -> str:
    r"""Escape what steers a terminal or forges a line, as JSON would.

    >>> print(escape("a\x1b[2J\rb\nfake line\n  item of a list"))
    a\u001b[2J\u000db\nfake line
      item of a list
    """
    return _STEERING.sub(lambda match: _as_json(match.group()), text)


def escape_lines(text: str) -> str:
    """Escape a text of several lines, such as indented JSON, whose newlines are our own."""
    return "\n".join(escape(line) for line in text.split("\n"))


def _as_json(character: str) -> str:
    return "\\n" if character == "\n" else f"\\u{ord(character):04x}"
