"""The app: ``"dispytch.django"`` in ``INSTALLED_APPS``."""

from __future__ import annotations

from django.core import checks
from django.utils.module_loading import autodiscover_modules

from dispytch.django import conf
from dispytch.django._typed import AppConfig

__all__ = ["DispytchConfig"]


class DispytchConfig(AppConfig):
    """Imports the modules ``events`` and ``handlers`` of all apps, where there are any, and registers the checks."""

    name: str = "dispytch.django"
    label: str = "dispytch"
    verbose_name: str = "Dispytch"

    def ready(self) -> None:
        from dispytch.django.checks import check, check_deployment

        checks.register(check, "dispytch")
        checks.register(check_deployment, "dispytch", deploy=True)
        config, _ = conf.examine()  # what is wrong is told by the checks
        autodiscover_modules(*config.discover)
