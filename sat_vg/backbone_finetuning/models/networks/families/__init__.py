"""How each family of networks is cut into stages, and where its features and its head are."""
