"""What every page is wrapped in: its head, its style, and the policy that lets it load nothing from anywhere."""

from __future__ import annotations

from importlib import resources

from upshift.reports.html import Child, Html, tag

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def whole_page(title: str, description: str, *sections: Child, footer: str) -> str:
    """A page as text that needs nothing but itself.

    Args:
        title: Of the window.
        description: One sentence, for who lists pages.
        sections: What the page shows.
        footer: A sentence at its end.
    """
    style = resources.files("upshift.reports").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="description", content=description),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(style)),
    )
    body = tag("body", tag("main", sections), tag("footer", footer))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"
