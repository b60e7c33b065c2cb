"""FinetuneConfig and the command line made from it."""
