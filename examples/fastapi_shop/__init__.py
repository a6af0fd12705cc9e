"""A web shop on FastAPI that emits events and handles them in the same process, over any broker."""
