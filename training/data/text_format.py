"""How question, chain and answer are written as one sequence: ours, or exactly as the original iCoT codes write it.

    plain      question <start> chain <ready> #### answer <eos>
    original   ␣question␣ <eos> ␣chain␣ <eos> ␣####␣answer␣ <eos>                       (Deng et al., arXiv 2405.14838)
    fork       ␣question␣ <eos> <|start|> ␣chain␣ <|ready|> ␣####␣answer␣ <eos>         (its fork with filler tokens)

A removed token is one of these sequences' tokens, so a published schedule means the same only in its own format: the chain
of the other two has spaces between steps and around it, and commas are left out of answers.
"""

from itertools import pairwise

from tokenizers import normalizers, processors
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from latent_cot.training.errors import InputError

from .tokenization import starts_with_bos

SPACE = " "
FORK_TOKENS = {"start_token_id": "<|start|>", "pause_token_id": "<|pause|>", "ready_token_id": "<|ready|>"}


def family_tokens(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tokens of a family, by the field of the configuration that holds the id; some may still have to be added.

    A family's own tokens; or those that a checkpoint of another code was trained with.
    """
    own = getattr(config, "special_tokens", {})
    if not own:
        return {}
    form, vocabulary = getattr(config, "text_format", "plain"), tokenizer.get_vocab()
    if form == "fork":
        return dict(FORK_TOKENS)
    if form == "original":
        return dict.fromkeys(("start_token_id", "ready_token_id"), tokenizer.eos_token)
    # The id of a checkpoint counts where the tokenizer does not know the name (a converted one may use <eos>).
    named = {}
    for field, token in own.items():
        held = getattr(config, field)
        keeps = token not in vocabulary and held is not None and held in tokenizer.all_special_ids
        named[field] = tokenizer.convert_ids_to_tokens(held) if keeps else token
    return named


def is_of_the_fork(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has the filler-token fork's tokens, as its checkpoints do."""
    return set(FORK_TOKENS.values()) <= tokenizer.get_vocab().keys()


def write_spaces(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a tokenizer put a space before every text and after a question, in place; it is saved so. Raises InputError
    for a tokenizer without a token for a space at the end of a text.
    """
    word, spaced = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("1", f"1{SPACE}"))
    space = spaced[len(word) :]
    if spaced[: len(word)] != word or len(space) != 1:
        raise InputError("--text_format: the tokenizer has no token for a space at the end of a text")
    backend, name = tokenizer.backend_tokenizer, tokenizer.convert_ids_to_tokens(space[0])
    bos = [(tokenizer.bos_token, tokenizer.bos_token_id)] if starts_with_bos(tokenizer) else []
    before = [normalizers.Prepend(SPACE)]
    backend.normalizer = normalizers.Sequence(before + [backend.normalizer] * (backend.normalizer is not None))
    backend.post_processor = processors.TemplateProcessing(
        single=" ".join([*(token for token, _ in bos), "$A", name]), special_tokens=[*bos, (name, space[0])]
    )


def tokenize_spaced(
    examples: dict[str, list], tokenizer: PreTrainedTokenizerBase, keep_last_step: bool, answer_prompt_ids: list[int]
) -> dict[str, list]:
    """`tokenization.tokenize` in the originals' format; `answer_text` is the answer as it is written there. Raises
    InputError for an answer that the tokenizer does not begin with the answer prompt.

    Args:
        examples: texts: `question`, `steps` (a list per example) and `answer`.
        tokenizer: one that `write_spaces` has changed.
    """
    options = {"split_special_tokens": True, "return_attention_mask": False}
    prompt = tokenizer.decode(answer_prompt_ids).strip()
    steps, answers = [], []
    for texts, answer in zip(examples["steps"], examples["answer"], strict=True):
        texts = texts if keep_last_step else texts[:-1]
        steps.append(tokenize_chain(texts, tokenizer, **options))
        text = f"{prompt} {answer.replace(',', '')} "
        ids = tokenizer(text, add_special_tokens=False, **options)["input_ids"]
        if ids[: len(answer_prompt_ids)] != answer_prompt_ids:
            raise InputError(f"--text_format: in {text!r} the answer prompt {prompt!r} is no token of its own")
        answers.append(ids[len(answer_prompt_ids) :])
    questions = tokenizer(examples["question"], add_special_tokens=True, **options)["input_ids"]
    # The gold that a generated answer is compared with is written alike.
    golds = [answer.replace(",", "") for answer in examples["answer"]]
    return {"question": questions, "steps": steps, "answer": answers, "answer_text": golds}


def tokenize_chain(texts: list[str], tokenizer: PreTrainedTokenizerBase, **options) -> list[list[int]]:
    """The tokens of `␣step␣step␣`, encoded as one text and then dealt out to the steps."""
    chain = SPACE.join(texts) + SPACE  # an empty chain too is written as two spaces
    encoded = tokenizer(chain, add_special_tokens=False, return_offsets_mapping=True, **options)
    ends, place = [], 0
    for text in texts:
        place += len(text) + 1
        ends.append(place)
    ends[-1:] = [float("inf")]
    bounds = [float("-inf"), *ends]
    placed = list(zip(encoded["input_ids"], (start for start, _ in encoded["offset_mapping"]), strict=True))
    # A step's leading space belongs to it: it ends one character before the next one's text.
    return [[token for token, at in placed if low - 1 <= at < high - 1] for low, high in pairwise(bounds)]


def check_format(
    rows: list[dict], features: dict[str, list], config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Compare the tokens of some rows with those of the whole line, written out and encoded as the originals do. Raises
    InputError at the first row that differs.

    Args:
        features: of `tokenize_spaced`, for the same rows.
        tokenizer: as it was before `write_spaces`.
    """
    eos = tokenizer.eos_token
    middle = (
        (eos, eos)
        if config.text_format == "original"
        else (f"{eos}{FORK_TOKENS['start_token_id']}", FORK_TOKENS["ready_token_id"])
    )
    fields = zip(rows, features["question"], features["steps"], features["answer"], strict=True)
    for row, question, steps, answer in fields:
        prompt = tokenizer.decode(config.answer_prompt_ids).strip()
        answer_text = f"{prompt} {row['answer'].replace(',', '')}"
        line = f" {row['question']} {middle[0]} {' '.join(row['steps'])} {middle[1]} {answer_text} {eos}"
        there = tokenizer(line, add_special_tokens=True, split_special_tokens=False)["input_ids"]
        between = [*(config.question_end_ids or []), config.start_token_id]
        here = [*question, *between, *(token for step in steps for token in step), config.ready_token_id]
        here += [*config.answer_prompt_ids, *answer, tokenizer.eos_token_id]
        if here != there:
            raise InputError(
                f"--text_format {config.text_format}: this tokenizer writes {row['question'][:40]!r} otherwise than the "
                "original code would; use --text_format plain"
            )
