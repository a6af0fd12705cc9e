"""A shop with a little of everything that a document can hold."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, SecretStr, computed_field
from typing_extensions import TypedDict

from dispytch import Event, EventBase, EventDispatcher, HandlerGroup, Router, SubscriptionParam
from dispytch.ack import AckBeforeProcessing
from dispytch.asyncapi import document
from dispytch.kafka import KafkaConsumer, KafkaEventConfig, KafkaEventRoute

T = TypeVar("T")


class Currency(StrEnum):
    EUR = "EUR"
    USD = "USD"


class Money(BaseModel):
    """An amount in a currency."""

    amount: Decimal = Field(ge=0, decimal_places=2, examples=["49.90"])
    currency: Currency = Currency.EUR


class Line(BaseModel):
    sku: str = Field(description="The article's number, `ABC-123`.", pattern=r"^[A-Z]{3}-\d{3}$", examples=["LMP-001"])
    quantity: int = Field(1, ge=1, le=999)
    price: Money


class Card(BaseModel):
    kind: Literal["card"]
    last_digits: str = Field(min_length=4, max_length=4, examples=["4242"])


class Invoice(BaseModel):
    kind: Literal["invoice"]
    vat_number: str | None = None


class Category(BaseModel):
    """A category of articles, which may hold others."""

    name: str
    children: list[Category] = []


class Page(BaseModel, Generic[T]):
    items: list[T]
    cursor: str | None = None


class Address(TypedDict):
    street: str
    city: str


class OrderPlaced(EventBase):
    """An order was placed, and is paid or will be.

    Emitted once for each order, before anything of it is packed.
    """

    __topic__ = "shops.{shop}.orders"
    __key__ = "{order_id}"

    model_config = ConfigDict(populate_by_name=True)

    shop: str = Field(description="The shop's short name.", examples=["berlin"])
    order_id: UUID = Field(alias="orderId")
    lines: list[Line] = Field(min_length=1)
    payment: Annotated[Card | Invoice, Field(discriminator="kind")]
    ship_to: Address
    placed_at: datetime = Field(description="When the customer pressed the button.")
    notes: dict[str, str] = Field({})

    @computed_field(description="The sum over all lines.")  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def total(self) -> Decimal:
        return sum((line.price.amount * line.quantity for line in self.lines), Decimal(0))


class OrderCancelled(EventBase):
    """The customer has changed their mind."""

    __topic__ = "shops.{shop}.orders"
    __key__ = "{order_id}"

    shop: str
    order_id: UUID
    reason: Literal["late", "wrong", "other"] = "other"


class OrderShipped(EventBase):
    """A parcel has left the house."""

    __route__ = KafkaEventRoute(topic="shipments")
    __backend_config__ = KafkaEventConfig(partition_key="{order_id}", headers={"team": "logistics"})

    order_id: UUID
    parcel: str = Field(examples=["JD0146000038"])
    weight: float = Field(description="In kilograms.", gt=0, lt=1000)


class Heartbeat(EventBase):
    __topic__ = "heartbeats"


class Stock(BaseModel):
    sku: str
    left: int = Field(ge=0)
    token: SecretStr = SecretStr("quiet")


billing = Router(tags=["billing"])
warehouse = Router(tags=["warehouse", "night shift"])
catalogue = HandlerGroup(default_topic="catalogue", tags=["catalogue"])


@billing.handler(OrderPlaced)
async def charge(event: Event[OrderPlaced]) -> None:
    """Charges the customer's card, or writes an invoice.

    A card that is declined is tried again for a day; then the order becomes a dead letter:

    - look at it with `dispytch dead show`,
    - and replay it when the customer has another card.
    """


@billing.handler(OrderCancelled, dead_letter="refunds.failed")
def refund(order: OrderCancelled) -> None:
    """Gives the money back."""


@warehouse.handler(OrderPlaced)
async def pack(order: OrderPlaced, shop: Annotated[Literal["berlin", "oslo"], SubscriptionParam()]) -> None:
    """Packs what was ordered in one of the two shops that have a warehouse."""


@warehouse.handler(topic="stock.{warehouse}.levels", event="StockChanged", batch=500, batch_wait=0.5)
async def count(events: list[Event[Stock | None]]) -> None:
    """Keeps count of what is left, in batches; a null value is an article that is no longer sold."""


@warehouse.handler(topic="shops.*.returns.#", ack_policy=AckBeforeProcessing())
async def note_return(event: Event[dict[str, Any]]) -> None:
    """Notes whatever comes back."""


@catalogue.handler(event="CategoryChanged")
async def reindex(event: Event[Category]) -> None:
    """Indexes a category anew."""


@catalogue.handler(event="Imported")
async def imported(event: Event[Page[Line]]) -> None: ...


def showcase() -> dict[str, Any]:
    """The document of the shop."""
    dispatcher = EventDispatcher(KafkaConsumer("localhost:9092", group_id="shop"))
    dispatcher.add_router(billing)
    dispatcher.add_router(warehouse)
    dispatcher.add_handler_group(catalogue)
    return document(
        dispatcher,
        title="Lamp shop",
        version="2.4.0",
        description="What the lamp shop receives and emits. Write to the team `shop` before you rely on a field.",
        emits=[OrderPlaced, OrderShipped, Heartbeat],
        servers={"production": "kafka+ssl://kafka-1.example.com:9093", "staging": "kafka://kafka.staging:9092"},
    )
