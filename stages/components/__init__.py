"""Rooms: what two stages or more assemble, by subject; each imports only earlier ones."""
