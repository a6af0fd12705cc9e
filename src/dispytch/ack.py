"""Acknowledgement policies: when an event is acknowledged."""

from dispytch._core.ack import AckAfterProcessing, AckBeforeProcessing, AckPolicy

__all__ = ["AckAfterProcessing", "AckBeforeProcessing", "AckPolicy"]
