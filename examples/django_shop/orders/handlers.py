"""What is done because of events, in ``manage.py dispytch_worker``."""

from __future__ import annotations

from django.db import transaction

from dispytch import Event, Router
from dispytch.django import emit_on_commit

from .events import OrderPlaced, OrderShipped
from .models import Order

router = Router()


@router.handler(OrderPlaced)
def ship(event: Event[OrderPlaced]) -> None:
    """A plain function, which runs in a thread: the ORM as in a view."""
    order_id = event.body.order_id
    with transaction.atomic():
        Order.objects.filter(pk=order_id).update(parcel=f"{event.body.item} in a box")
        emit_on_commit(OrderShipped(order_id=order_id))


@router.handler(OrderShipped)
async def tell_customer(event: Event[OrderShipped]) -> None:
    """An asynchronous function: the asynchronous ORM."""
    await Order.objects.filter(pk=event.body.order_id).aupdate(customer_told=True)
