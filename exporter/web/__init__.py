"""The HTTP side: pages and JSON; `serving` is the server in front of them."""
