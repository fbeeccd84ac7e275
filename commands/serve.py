"""transformers' own command line, which can also serve these models and chat with them.

    latent-cot serve --model checkpoints/pccot-gpt2-chain --port 8000
    latent-cot serve --model checkpoints/pccot-gpt2-chain --continuous-batching
    latent-cot chat --model checkpoints/pccot-gpt2-chain http://localhost:8000

The server speaks the OpenAI protocol. Further arguments are those of `transformers serve` and `transformers chat`. Needs:
pip install "transformers[serving]"
"""

import argparse
import functools
import json
import sys
from pathlib import Path

import torch

import latent_cot

from .asked_model import add_model

NUMBERS = {
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "temperature",
    "top_p",
    "frequency_penalty",
    "seed",
}
UNASKED = 1024  # the limit of new tokens that transformers' server writes into a request without one


def answer_bad_requests():
    """Have transformers' server answer 400 and one sentence, also before it streams, where it would answer 500."""
    from fastapi.responses import JSONResponse
    from transformers.cli.serving import chat_completion, server, utils

    handler = chat_completion.ChatCompletionHandler
    build, handle, check_fields = server.build_server, handler.handle_request, utils.BaseHandler._validate_request

    @functools.wraps(build)
    def build_server(*args, **kwargs):
        app = build(*args, **kwargs)

        @app.exception_handler(ValueError)
        async def refuse(request, error):
            message = " ".join(str(error).split())
            return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status_code=400)

        return app

    async def handle_request(self, body, *args, **kwargs):
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ValueError("messages must be a list of at least one message, {role, content}")
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise ValueError(f"each of the messages must have a role, got {str(message)[:60]}")
            if not isinstance(message.get("content"), str | list | None):
                raise ValueError(
                    f"the content of a message must be text or a list of parts, got {message['content']!r:.60}"
                )
            for part in message["content"] if isinstance(message.get("content"), list) else []:
                if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                    raise ValueError(f"each part of a message must be {{type: text, text}}, got {part!r:.60}")
        return await handle(self, body, *args, **kwargs)

    def validate(self, body):
        """What every kind of request has in common, before transformers reads it."""
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ValueError(f"the request holds {half!a}, half of a surrogate pair, which is no text") from None
        for name in NUMBERS & body.keys():
            if isinstance(body[name], list | dict):
                raise ValueError(f"{name} must be a number, got {body[name]!r:.60}")
        stop, bias = body.get("stop") or [], body.get("logit_bias") or {}
        if not all(isinstance(text, str) for text in (stop if isinstance(stop, list) else [stop])):
            raise ValueError(f"stop must be text, or a list of texts, got {stop!r:.60}")
        if not isinstance(bias, dict):
            raise ValueError(f"logit_bias must be numbers by token id, got {bias!r:.60}")
        options = body.get("generation_config")
        if options is not None and not (isinstance(options, str) and isinstance(json.loads(options), dict)):
            raise ValueError(f"generation_config must be text, a JSON object, got {options!r:.60}")
        return check_fields(self, body)

    def check(model, inputs, config):
        """Before the answer begins: later, a stream has said 200 already."""
        if not hasattr(model, "check_prompt"):
            return
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        if isinstance(ids, list):  # for continuous batching, one prompt
            ids, mask = torch.tensor([ids]), None
        room, unasked = model.room_for_answer(ids.shape[-1]), max(UNASKED, model.generation_config.max_new_tokens or 0)
        if config.max_new_tokens == unasked and room is not None:
            config.max_new_tokens = max(1, min(unasked, room))
        model.check_prompt(ids, mask, config)

    def asked(model, inputs, config) -> dict:
        """The inputs, with the options of a thought that a request's `generation_config` holds."""
        if isinstance(inputs.get("input_ids"), list):
            return inputs  # continuous batching reads them itself
        given = {name: getattr(config, name, None) for name in getattr(model, "batch_options", ())}
        return {**inputs, **{name: value for name, value in given.items() if value is not None}}

    def checking(manager):
        stream, answer = manager.generate_streaming, manager.generate_non_streaming

        def generate_streaming(self, model, processor, inputs, gen_config, *args, **kwargs):
            check(model, inputs, gen_config)
            return stream(self, model, processor, asked(model, inputs, gen_config), gen_config, *args, **kwargs)

        async def generate_non_streaming(self, model, processor, inputs, gen_config, *args, **kwargs):
            check(model, inputs, gen_config)
            return await answer(self, model, processor, asked(model, inputs, gen_config), gen_config, *args, **kwargs)

        manager.generate_streaming, manager.generate_non_streaming = generate_streaming, generate_non_streaming

    server.build_server, handler.handle_request = build_server, handle_request
    utils.BaseHandler._validate_request = validate
    checking(utils.GenerateManager)
    checking(utils.CBGenerateManager)


def transformers_command(name: str, argv: list[str]) -> None:
    """transformers' own command, with our models among its names, asked for the model by `--model` and `--revision`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_model(parser)
    if asked_for_help := {"-h", "--help"} & set(argv):
        print(parser.format_help() + "\nand, without its argument for the model:")
        words = ["--help"]
    else:
        args, rest = parser.parse_known_args(argv)
        if args.revision != "main" and not Path(args.model).exists():
            args.model += f"@{args.revision}"  # as the server names one
        if Path(args.model).is_dir() and not (Path(args.model) / "config.json").is_file():
            sys.exit(f"error: {args.model} is no checkpoint: no config.json in it")
        words = [args.model, *rest]
    try:
        from transformers.cli.transformers import app
    except ImportError as error:
        sys.exit(f'error: {error.name} is missing; pip install "transformers[serving]"')
    # The server looks a checkpoint's architecture up among transformers' own names. (Importing the command line puts
    # another module object in the place of `transformers`.)
    for each in latent_cot.__all__:
        setattr(sys.modules["transformers"], each, getattr(latent_cot, each))
    if name == "serve" and not asked_for_help:
        answer_bad_requests()
    app([name, *words], prog_name="latent-cot")


def serve(argv: list[str]) -> None:
    """Start the server; see `--help`."""
    transformers_command("serve", argv)


def chat(argv: list[str]) -> None:
    """Talk to a server; see `--help`."""
    transformers_command("chat", argv)
