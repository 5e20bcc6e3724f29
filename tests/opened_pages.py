"""What a page says to a program that reads it: its tags and texts, and the figures that its rows open."""

import base64
import gzip
import re
from html.parser import HTMLParser

VOID = {"br", "hr", "img", "input", "meta", "link", "col"}


class Checker(HTMLParser):
    """Fails on tags that do not nest; collects ids of what a browser would fetch, and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.text, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        style = dict(attrs).get("style") or ""
        self.fetched += [part.split(")")[0] for part in style.split("url(")[1:]]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text.append(data)


def unpacked(page: str) -> list[str]:
    """The figures of each row that has some, as HTML."""
    return [gzip.decompress(base64.b64decode(each)).decode() for each in re.findall(r'data-figures="([^"]+)"', page)]
