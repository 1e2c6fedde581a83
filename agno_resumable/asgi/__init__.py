"""HTTP: the response that streams a run, the routes, and who may use them."""
