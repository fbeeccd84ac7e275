"""What the command `latent-cot` does, a file per subcommand; `__main__.py` has the table of them."""
