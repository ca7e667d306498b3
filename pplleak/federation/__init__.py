"""What stands between a client and the server, and what the server sees."""
