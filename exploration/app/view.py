"""State of the app, as the query of its address: the same address shows the same view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from urllib.parse import urlencode

TABS = ("search", "map", "clusters", "duplicates", "table")
MAX_LENGTH = 4096  # characters of a value; longer ones are cut


@dataclass(frozen=True)
class View:
    """State of the app.

    Args:
        tab: Tab that is open.
        image: Name of the image to search by; "" for none.
        row: Row of this image, if several rows have its name; "" for none.
        upload: Hash of the uploaded image to search by; "" for none.
        cluster: Cluster that is shown; "" for all.
        text: Part of the path that the rows of the table have.
        column: Column by which the table is filtered; "" for none.
        value: Value that the rows of the table have there.
        map: View of the map, as the fragment of its page.
    """

    tab: str = "search"
    image: str = ""
    row: str = ""
    upload: str = ""
    cluster: str = ""
    text: str = ""
    column: str = ""
    value: str = ""
    map: str = ""

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> View:
        """Return the state of an address; parts that are not understood are left out.

        Args:
            query: Values by name.
        """
        names = cls.__dataclass_fields__
        values = {name: str(query[name])[:MAX_LENGTH] for name in names if name in query}
        if values.get("tab") not in TABS:
            values.pop("tab", None)
        return cls(**values)

    def to_query(self) -> str:
        """Return the query of the address, without the question mark."""
        return urlencode({name: value for name, value in asdict(self).items() if value})


__all__ = ["TABS", "View"]
