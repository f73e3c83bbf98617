"""Exceptions as user code has them, which are hard to carry."""

from __future__ import annotations


class Fields(Exception):
    """Looks up any attribute among its fields, as clients of web services do."""

    def __init__(self, **fields: object) -> None:
        super().__init__("real reason")
        self.fields = fields

    def __getattr__(self, name: str) -> object:
        return self.__dict__["fields"][name]
