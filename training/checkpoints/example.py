#!/usr/bin/env python
"""Ask a model that thinks in latent tokens, or any other that was trained here.

python example.py "7+3*4-2+9=" "1+1*2-3+4="
python example.py --explicit "7+3*4-2+9="
python example.py --model FOLDER_OR_NAME "7+3*4-2+9="

Without --model it asks the model in its own folder: every checkpoint has a copy of it, which needs only transformers.
"""

import argparse
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

HERE = Path(__file__).resolve().parent


def load(name: str, revision: str, trust_remote_code: bool):
    """Model and tokenizer. With the package also of adapters, and of checkpoints that the original published."""
    try:
        from latent_cot.training.checkpoints.read import load
    except ImportError:
        trusted = {"trust_remote_code": True} if trust_remote_code else {}
        try:
            logging.set_verbosity_error()  # one line instead of a table
            whole = {"use_safetensors": True, "output_loading_info": True}
            model, info = AutoModelForCausalLM.from_pretrained(name, revision=revision, **whole, **trusted)
            random = sorted(info["missing_keys"])
            wrong = random or [key for key, tensor in model.state_dict().items() if not tensor.isfinite().all()]
            if wrong:
                sys.exit(f"error: {name}: {wrong[0]} is {'missing' if random else 'not finite'}, so it cannot answer")
            return model.eval(), AutoTokenizer.from_pretrained(name, revision=revision, **trusted)
        except ValueError as error:
            if trust_remote_code or "trust_remote_code" not in str(error):
                raise
            sys.exit("error: without the package pass --trust_remote_code to run the checkpoint's own code")
    return load(name, revision, trust_remote_code=trust_remote_code)


def unknown_text(tokenizer, question: str) -> str | None:
    """The first part of a question that a tokenizer made from training data has no token for."""
    if tokenizer.unk_token_id is None:
        return None
    encoded = tokenizer(question, return_offsets_mapping=True)
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if token == tokenizer.unk_token_id:
            return question[start:end].strip() or question[start:end]
    return None


def model_for(questions: list[str], shipped: Path | None) -> Path:
    """Beside a checkpoint, the checkpoint itself; in a clone the shipped one that has tokens for most of the questions."""
    if (HERE / "config.json").is_file():
        return HERE
    folders = sorted(path.parent for path in shipped.glob("*/config.json")) if shipped else []
    if not folders:
        sys.exit("error: no model: pass --model with a folder or a name on the Hub")

    def unknown(folder: Path) -> int:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)  # AutoTokenizer asks for registered types
        return sum(ids.count(tokenizer.unk_token_id) for ids in tokenizer(questions)["input_ids"])

    return min(folders, key=unknown)


def answer(model, tokenizer, questions: list[str], max_new_tokens: int, **options) -> list[str]:
    """What the model writes after each question."""
    inputs = tokenizer(questions, padding=len(questions) > 1, return_tensors="pt")
    asked = inputs.input_ids.shape[1]
    if hasattr(model, "room_for_answer"):
        room = model.room_for_answer(asked, **options)
    else:  # a stock backbone, trained by run_cot.py
        limit = getattr(model.config, "max_position_embeddings", None)
        room = None if limit is None else limit - asked
    if room is not None:
        max_new_tokens = max(1, min(max_new_tokens, room))
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, **options)
    return [text.strip() for text in tokenizer.batch_decode(output[:, asked:], skip_special_tokens=True)]


def main(argv: list[str] | None = None, shipped: Path | None = None) -> None:
    """Answer the questions of a command line.

    Args:
        argv: the arguments; those of this process by default.
        shipped: a folder of checkpoints, of which one is asked where none is named.
    """
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    if not parser.prog.endswith(".py"):
        parser.description = __doc__.replace("python example.py", parser.prog)
    parser.add_argument("--model", help="a folder or a name on the Hub")
    parser.add_argument("--revision", default="main", help="branch, tag or commit on the Hub")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that the checkpoint brings")
    parser.add_argument("--explicit", action="store_true", help="show the written chain of thought too")
    parser.add_argument("--num_iterations", type=int, help="T, instead of the checkpoint's")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("questions", nargs="*")
    args = parser.parse_args(argv)
    asked, args.questions = args.questions, args.questions or ["7+3*4-2+9=", "2-9+4*6-3=", "1+2*3-4+5="]
    logging.disable_progress_bar()
    if args.model is None:
        args.model = str(model_for(args.questions, shipped))
    try:
        model, tokenizer = load(args.model, args.revision, args.trust_remote_code)
    except Exception as error:  # over a damaged file, libraries raise errors of many kinds
        sys.exit(f"error: cannot load {args.model}: {' '.join(str(error).split())}")

    for question in args.questions:
        if unknown := unknown_text(tokenizer, question):
            if not asked:
                sys.exit("error: pass a question, such as the model was trained on")
            sys.exit(f"error: {args.model} does not know {unknown!r} of {question!r}: its training data never had it")
    modes = {mode.name: mode for mode in getattr(model, "answer_modes", ())}
    own = next(iter(modes.values())).options if modes else {}
    if args.num_iterations is not None:
        if "ccot" not in modes:
            sys.exit(
                f"error: --num_iterations is for models that think in latent tokens, not for {model.config.model_type}"
            )
        own = own | {"num_iterations": args.num_iterations}
    if args.explicit and not modes:
        sys.exit(f"error: --explicit: a {model.config.model_type} model has one way to answer, as it was trained")
    chains = [None] * len(args.questions)
    try:
        answers = answer(model, tokenizer, args.questions, args.max_new_tokens, **own)
        if args.explicit:
            chains = answer(model, tokenizer, args.questions, args.max_new_tokens, **modes["cot"].options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for question, text, chain in zip(args.questions, answers, chains, strict=True):
        print(f"{question}  ->  {text}" + (f"   (explicit: {chain})" if chain else ""))


if __name__ == "__main__":
    main()
