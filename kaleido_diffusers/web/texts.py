"""Text of others on pages."""

import re


__all__ = ["as_markdown"]

_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~$&:])")


def as_markdown(text: str) -> str:
    """Markdown that shows a text as it is: names of captures and messages come from files of others, and would
    otherwise make links and pictures on the page.

    Args:
        text (`str`): any.
    """
    return _MARKS.sub(r"\\\1", " ".join(text.split()))
