"""Parses a report, for tests of what is on it."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "hr", "input", "wbr"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what the tests compare."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.refs, self.tags, self.attributes, self.text = [], [], [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} repeats an attribute"
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "srcset", "data", "poster", "action"):
                self.refs.append(value)
            if name in ("aria-labelledby", "aria-describedby"):
                self.refs += [f"#{part}" for part in value.split()]
            self.refs += [f"#{found}" for found in re.findall(r"url\(#([^)]+)\)", value or "")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else, line {self.getpos()}"

    def handle_data(self, data):
        self.text.append(data)
