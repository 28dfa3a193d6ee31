"""A template and what stands in it -> a page that needs no network."""

from typing import Any

from jinja2 import Environment, PackageLoader


def lay_out(template: str, **values: Any) -> str:
    """Fill in a template of this package, one that extends page.html; what comes from files is escaped."""
    loader = PackageLoader("pcam_lightning", "")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values)
