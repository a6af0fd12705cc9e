"""A web shop on Django: views emit on commit, a worker handles events with the ORM, over any broker."""
