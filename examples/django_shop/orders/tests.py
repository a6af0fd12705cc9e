"""Tests of the app, with no broker.

python examples/django_shop/manage.py test orders
"""

from __future__ import annotations

from django.test import TestCase, TransactionTestCase

from dispytch import Event
from dispytch.django import dispatcher
from dispytch.django.testing import recording
from dispytch.memory import MemoryBroker
from dispytch.testing import Faults, running_in_thread

from .events import OrderPlaced, OrderShipped
from .handlers import ship
from .models import Order, UnsentEvent


class PlacingOrders(TestCase):
    def test_an_order_is_told(self) -> None:
        with recording() as emitted, self.captureOnCommitCallbacks(execute=True):
            response = self.client.post("/orders/", {"item": "lamp"})
        assert response.status_code == 202
        emitted.assert_emitted(OrderPlaced, item="lamp", order_id=Order.objects.get().pk)

    def test_what_is_rolled_back_is_not_told(self) -> None:
        with recording() as emitted, self.captureOnCommitCallbacks(execute=True):
            response = self.client.post("/orders/", {"item": "unicorn"})
        assert response.status_code == 409
        assert not Order.objects.exists()
        emitted.assert_not_emitted(OrderPlaced)

    def test_an_event_that_fails_is_kept(self) -> None:
        faults = Faults()
        faults.fail("reject")
        with (
            recording(broker=MemoryBroker(faults=faults)),
            self.assertLogs("dispytch", "ERROR"),
            self.captureOnCommitCallbacks(execute=True),
        ):
            response = self.client.post("/orders/", {"item": "lamp"})
        assert response.status_code == 202
        unsent = UnsentEvent.objects.get()
        assert unsent.kind == "OrderPlaced"
        assert unsent.body == {"order_id": Order.objects.get().pk, "item": "lamp"}

    def test_a_handler_is_a_function(self) -> None:
        order = Order.objects.create(item="lamp")
        with recording() as emitted, self.captureOnCommitCallbacks(execute=True):
            ship(Event(OrderPlaced(order_id=order.pk, item="lamp")))
        order.refresh_from_db()
        assert order.parcel == "lamp in a box"
        emitted.assert_emitted(OrderShipped, order_id=order.pk)


class WholeShop(TransactionTestCase):
    """Handlers run in threads with connections of their own, which see only what is committed."""

    def test_what_is_ordered_is_shipped(self) -> None:
        broker = MemoryBroker()
        with recording(broker=broker) as emitted, running_in_thread(dispatcher(), broker) as events:
            response = self.client.post("/orders/", {"item": "lamp"})
            events.idle()
        emitted.assert_emitted(OrderShipped)
        order = Order.objects.get(pk=response.json()["order_id"])
        assert (order.parcel, order.customer_told) == ("lamp in a box", True)
