"""The suite that a transport's tests subclass."""

from __future__ import annotations

from typing import Any

from dispytch.errors import ConfigurationError
from dispytch.testing.conformance.bench import Bench
from dispytch.testing.conformance.closing import ClosingRows
from dispytch.testing.conformance.deadletters import DeadLetterRows
from dispytch.testing.conformance.delivery import DeliveryRows
from dispytch.testing.conformance.emitting import EmittingRows
from dispytch.testing.conformance.order import OrderRows
from dispytch.testing.conformance.rows import ROWS, Row
from dispytch.testing.conformance.settling import SettlingRows

__all__ = ["TABLE", "TransportSuite"]


class TransportSuite(EmittingRows, DeliveryRows, SettlingRows, OrderRows, DeadLetterRows, ClosingRows):
    """The conformance suite: a subclass in a test module runs every row that applies to its transport.

    ```python
    class TestParcels(TransportSuite):
        features = ParcelConsumer.features

        @pytest.fixture(autouse=True)
        def post_office(self, parcel_url: str) -> None:
            self.url = parcel_url

        def producer(self) -> Producer:
            return ParcelProducer(self.url)

        def consumer(self, group_id: str) -> Consumer:
            return ParcelConsumer(self.url, group_id)
    ```

    Rows that need what the transport does not have are not collected, nor are columns whose loop is not installed.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        names = [row.name for row in TABLE]
        if unknown := set(cls.leaves_out).difference(names):
            raise ConfigurationError(
                f"{cls.__name__}.leaves_out has {sorted(unknown)}; the rows are {', '.join(names)}"
            )
        for row in TABLE:
            # None is nothing that pytest collects; and a subclass may have again what its base had not.
            if not cls._runs(row):
                setattr(cls, row.test, None)
            elif getattr(cls, row.test) is None and row.test not in vars(cls):
                setattr(cls, row.test, getattr(TransportSuite, row.test))

    @classmethod
    def _runs(cls, row: Row) -> bool:
        features = cls.features
        return (
            all(getattr(features, name) for name in row.needs)
            and not any(getattr(features, name) for name in row.lacks)
            and (row.hook is None or getattr(cls, row.hook) is not getattr(Bench, row.hook))
            and any(column in row.columns for column in cls.columns)
            and row.name not in cls.leaves_out
        )


TABLE: tuple[Row, ...] = tuple(ROWS[test] for rows in TransportSuite.__bases__ for test in vars(rows) if test in ROWS)
"""All rows, in order."""
