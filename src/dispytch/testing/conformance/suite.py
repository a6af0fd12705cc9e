"""The suite that a transport's tests subclass."""

from __future__ import annotations

from typing import Any, ClassVar

from dispytch.errors import ConfigurationError
from dispytch.testing.conformance.bench import Bench
from dispytch.testing.conformance.closing import ClosingRows
from dispytch.testing.conformance.deadletters import DeadLetterRows
from dispytch.testing.conformance.delivery import DeliveryRows
from dispytch.testing.conformance.emitting import EmittingRows
from dispytch.testing.conformance.order import OrderRows
from dispytch.testing.conformance.rows import ROWS, Row

__all__ = ["TransportSuite"]


class TransportSuite(EmittingRows, DeliveryRows, OrderRows, DeadLetterRows, ClosingRows):
    """The conformance suite: a subclass in a test module runs every row that applies to its transport.

    ::

        class TestParcels(TransportSuite):
            features = ParcelConsumer.features

            @pytest.fixture(autouse=True)
            def post_office(self, parcel_url: str) -> None:
                self.url = parcel_url

            def producer(self) -> Producer:
                return ParcelProducer(self.url)

            def consumer(self, group_id: str) -> Consumer:
                return ParcelConsumer(self.url, group_id)

    Rows that need what the transport does not have are not collected, nor are columns whose loop is not installed.
    """

    __test__: ClassVar[bool] = False  # its subclasses are

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__test__ = cls.__dict__.get("__test__", True)
        unknown = set(cls.leaves_out) - {row.name for row in ROWS.values()}
        if unknown:
            raise ConfigurationError(
                f"{cls.__name__}.leaves_out has {sorted(unknown)}; the rows are "
                f"{', '.join(row.name for row in ROWS.values())}"
            )
        for test, row in ROWS.items():
            # None is nothing that pytest collects; and a subclass may have again what its base had not.
            if not cls._runs(row):
                setattr(cls, test, None)
            elif getattr(cls, test) is None:
                setattr(cls, test, getattr(TransportSuite, test))

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
