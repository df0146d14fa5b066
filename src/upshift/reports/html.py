"""HTML made of values: everything is escaped unless it is `Html` already."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import TypeAlias

VOID_TAGS = frozenset({"br", "col", "hr", "img", "link", "meta", "wbr"})

# Not allowed in HTML text even as a reference, or (surrogates) not encodable as UTF-8.
_UNREPRESENTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Html(str):
    """Markup that must not be escaped again."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"
Attribute: TypeAlias = "str | int | float | bool | None"


def escape(value: object) -> Html:
    """A value as HTML text, safe between tags and in quoted attributes; `Html` passes unchanged."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(_UNREPRESENTABLE.sub("\ufffd", str(value)), quote=True))


def join(children: Child) -> Html:
    """Children one after another, each escaped; None is nothing."""
    if children is None:
        return Html("")
    if isinstance(children, str | int | float):
        return escape(children)
    return Html("".join(join(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """An element.

    Args:
        name: The tag's name.
        children: Its content, escaped unless `Html`.
        attributes: `class_` for class, `aria_label` for aria-label; True is an attribute without a
            value, None and False leave it out.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        written.append(f" {attribute}" if value is True else f' {attribute}="{escape(value)}"')
    opening = f"<{name}{''.join(written)}>"
    if name in VOID_TAGS:
        return Html(opening)
    return Html(f"{opening}{join(children)}</{name}>")


def label(text: object) -> Html:
    """Somebody else's name (a class, a file), whose writing direction cannot disturb what surrounds it."""
    return tag("bdi", str(text))


def separated(parts: Iterable[Child]) -> list[Child]:
    """Parts with a dot between each two."""
    return [piece for part in parts for piece in (" · ", part)][1:]


def unbroken(text: str) -> list[Child]:
    """A sentence whose intervals ("(3.9–4.5×)") are not torn apart at the end of a line."""
    pieces = re.split(r"(\S*\d–\d\S*)", text)
    return [tag("span", piece, class_="unbroken") if index % 2 else piece for index, piece in enumerate(pieces)]


def scrolling_table(caption: Child, head: Child, body: Child, *, name: str, class_: str | None = None) -> Html:
    """A table that scrolls inside itself where the page is narrower; `name` is what a screen reader announces."""
    table = tag(
        "table",
        tag("caption", tag("span", caption)),
        tag("thead", head),
        tag("tbody", body),
        class_=class_,
    )
    return tag("div", table, class_="scroll", role="region", aria_label=name, tabindex=0)
