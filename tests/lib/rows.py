"""Records of preference data, and how a test reads and tokenizes them."""

import json

from lib.tokenizers import make_tokenizer

from jaxalign.core import layouts
from jaxalign.data.encode import Encoder
from jaxalign.data.read import read_records
from jaxalign.data.records import Record
from jaxalign.data.tally import Tally
from jaxalign.data.tokenize import load_examples
from jaxalign.settings import Data

PAIR = {"prompt": "Q", "chosen": " yes", "rejected": " no"}
LABELED = {"prompt": "Q", "completion": " yes", "label": True}
DEMO = {"prompt": "Q", "completion": " yes"}
CHAT_Q = [{"role": "user", "content": "Q"}]
CHAT_A = [{"role": "assistant", "content": "yes"}]
CHAT_B = [{"role": "assistant", "content": "no"}]
PLAIN = make_tokenizer()


def write(folder, *records, name="data.jsonl"):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def read(path, layout=layouts.PAIRS, tally=None, split="train", **changes):
    settings = Data(path=path, **changes)
    return list(read_records(settings, path, split, layout, tally or Tally()))


def one(folder, record, layout=layouts.PAIRS, **changes) -> Record:
    (row,) = read(write(folder, record), layout, **changes)
    return row


def load(folder, *records, layout=layouts.PAIRS, tokenizer=PLAIN, seed=0, columns=(), **changes):
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    given_settings = Data(path=str(path), **changes)
    return load_examples(
        given_settings, str(path), "train", Encoder(tokenizer), layout, seed=seed, columns=columns
    )


def pair(prompt, chosen=" yes", rejected=" no"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def texts(item, tokenizer=PLAIN):
    return [tokenizer.decode(ids) for ids in (item.prompt, *(b.ids for b in item.branches))]


def words(n, word=" yes"):
    return word * n
