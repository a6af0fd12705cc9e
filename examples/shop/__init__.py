"""A blocking web shop and an asynchronous service that exchange events, over any broker."""
