"""The web page: a client of the service that speaks to browsers."""
