"""Requests."""

from __future__ import annotations

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_GET, require_POST

from dispytch.django import emit_on_commit

from .events import OrderPlaced
from .models import Order


class OutOfStockError(Exception):
    """There is no such thing."""


@require_POST
def place_order(request: HttpRequest) -> JsonResponse:
    try:
        with transaction.atomic():
            order = Order.objects.create(item=request.POST["item"])
            emit_on_commit(OrderPlaced(order_id=order.pk, item=order.item))
            reserve(order)
    except OutOfStockError:
        return JsonResponse({"error": "out of stock"}, status=409)
    return JsonResponse({"order_id": order.pk}, status=202)


def reserve(order: Order) -> None:
    if order.item == "unicorn":
        raise OutOfStockError


@require_GET
def show_order(request: HttpRequest, order_id: int) -> JsonResponse:
    order = get_object_or_404(Order, pk=order_id)
    return JsonResponse({"item": order.item, "parcel": order.parcel, "customer_told": order.customer_told})
