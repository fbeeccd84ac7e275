#!/usr/bin/env python
"""transformers' own command line, which can also serve these models and chat with them.

    python serve.py serve checkpoints/pccot-gpt2-chain --port 8000
    python serve.py chat checkpoints/pccot-gpt2-chain http://localhost:8000

The server speaks the OpenAI protocol. Needs: pip install "transformers[serving]"
"""

import sys

import models


def main():
    try:
        from transformers.cli.transformers import app
    except ImportError as error:
        sys.exit(f'error: {error.name} is missing; pip install "transformers[serving]"')
    # The server looks a checkpoint's architecture up among transformers' own names. (Importing the command line puts
    # another module object in the place of `transformers`.)
    for name in models.__all__:
        setattr(sys.modules["transformers"], name, getattr(models, name))
    app()


if __name__ == "__main__":
    main()
