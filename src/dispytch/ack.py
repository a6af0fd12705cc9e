"""Acknowledgement policies: when an event is acknowledged."""

from dispytch._core.ack import AckAfterProcessing, AckBeforeProcessing, AckPolicy, ManualAck

__all__ = ["AckAfterProcessing", "AckBeforeProcessing", "AckPolicy", "ManualAck"]
