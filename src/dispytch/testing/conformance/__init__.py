"""The conformance suite: what every transport keeps, in every column. `dispytch.testing.TransportSuite` is its door."""
