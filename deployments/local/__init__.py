"""The service on one machine: its processes are started, watched and stopped here."""
