"""Look inside a thought: one page that shows what each latent holds, how it moves, and what the answer attends to.

latent-cot inspect "7+3*4-2+9=" "2-9+4*6-3=" --html latents.html
latent-cot inspect --model outputs/chain --dataset_name chain --html latents.html
"""

import argparse
from pathlib import Path

from latent_cot.analysis.comparison import comparison
from latent_cot.analysis.inspection import check_inspectable, inspect, read_data
from latent_cot.analysis.inspection_page import render_page
from latent_cot.configuration_prompt import LATENTS
from latent_cot.training.arguments import DataArguments
from latent_cot.training.checkpoints.example import unknown_text
from latent_cot.training.checkpoints.read import load
from latent_cot.training.data.sources import dataset_label, load_splits
from latent_cot.training.data.tokenization import warn_of_unknown
from latent_cot.training.errors import InputError

from .asked_model import add_model, shipped_checkpoints

SHOWN = 3  # questions of a data set, where none are asked


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", help="in text; of a data set the first ones if there are none here")
    shipped = shipped_checkpoints()
    add_model(parser, str(shipped / "pccot-gpt2-chain") if shipped else None)
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that the checkpoint brings")
    parser.add_argument("--html", type=Path, required=True, help="the page to write")
    parser.add_argument("--dataset_name", help="also how often each latent reads as its step, across this data set")
    parser.add_argument("--task_args", help="settings of a task")
    parser.add_argument("--test_file", help="a file instead of --dataset_name")
    parser.add_argument("--max_predict_samples", type=int, default=500, help="rows of the data set's test split")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="longest answer in tokens")
    parser.add_argument("--compare", help="when an answer is right: as in training")
    args = parser.parse_args(argv)
    same = comparison(args.compare)
    has_data = args.dataset_name is not None or args.test_file is not None
    if not args.questions and not has_data:
        raise InputError("nothing to look at: ask a question, or pass --dataset_name or --test_file")
    if not args.html.parent.is_dir():
        raise InputError(f"--html {args.html}: there is no folder {args.html.parent}")
    model, tokenizer = load(args.model, args.revision, trust_remote_code=args.trust_remote_code)
    check_inspectable(model)
    for question in args.questions:
        if unknown := unknown_text(tokenizer, question):
            raise InputError(f"{args.model} does not know {unknown!r} of {question!r}: its training data never had it")

    rows: list[dict] = [{"question": question} for question in args.questions]
    readings = None
    if has_data:
        names = ("dataset_name", "task_args", "test_file", "max_predict_samples")
        data = DataArguments(**{name: getattr(args, name) for name in names})
        examples = list(load_splits(data, ["test"])["test"])
        warn_of_unknown([row["question"] for row in examples], tokenizer)
        rows = rows or examples[:SHOWN]
        if model.config.between == LATENTS:
            readings = read_data(
                model, tokenizer, examples, data=dataset_label(data), max_new_tokens=args.max_new_tokens, same=same
            )
    views = [inspect(model, tokenizer, row, max_new_tokens=args.max_new_tokens, same=same) for row in rows]
    name = Path(args.model).name if Path(args.model).is_dir() else args.model
    args.html.write_text(render_page(views, readings, name=name, config=model.config), encoding="utf-8")
    print(f"wrote {args.html}")
