"""A module of its own, whose names a handler's annotations mean wherever it is registered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel

from dispytch import Dependency, Event


class Order(BaseModel):
    number: int


@dataclass
class Settings:
    name: str


seen: list[Any] = []


def get_name() -> str:
    return "default"


def get_settings(name: Annotated[str, Dependency(get_name)]) -> Settings:
    return Settings(name)


async def on_order(event: Event[Order], settings: Annotated[Settings, Dependency(get_settings)]) -> None:
    seen.append((event.body, settings))
