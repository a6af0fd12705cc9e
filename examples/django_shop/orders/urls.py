"""Addresses of the app."""

from django.urls import path

from . import views

urlpatterns = [path("", views.place_order), path("<int:order_id>", views.show_order)]
