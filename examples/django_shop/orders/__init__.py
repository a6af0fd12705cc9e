"""The app that takes orders and ships them."""
