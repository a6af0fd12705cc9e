"""A transactional outbox: ``"dispytch.django.outbox"`` in ``INSTALLED_APPS``, and ``DISPYTCH["OUTBOX"] = True``.

`emit_on_commit` then writes events to a table, in the transaction that they belong to, and
``manage.py dispytch_outbox`` emits them from there.
"""
