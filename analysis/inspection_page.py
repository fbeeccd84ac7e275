"""One self-contained page of what `inspection.py` found: nothing is loaded from elsewhere, and all text in it is escaped."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .inspection import Readings, View

TEMPLATE = "inspection.html.jinja"


def render_page(views: list[View], readings: Readings | None, *, name: str, config) -> str:
    """The page, as HTML."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(TEMPLATE).render(views=views, readings=readings, name=name, config=config)
