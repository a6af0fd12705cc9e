"""The shop's commands.

python examples/django_shop/manage.py migrate
BROKER_URL=redis+stream://localhost:6379 python examples/django_shop/manage.py runserver
BROKER_URL=redis+stream://localhost:6379 python examples/django_shop/manage.py dispytch_worker
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    execute_from_command_line(sys.argv)
