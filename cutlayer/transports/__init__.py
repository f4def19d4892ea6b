"""Transports: the loop between clients and the server, one file each."""
