"""Reads a pickle as data: nothing that it names is imported, and nothing is called.

A pickle is a program for a small stack machine. Python's own `pickle` imports and calls whatever the program names, so
it can run any code. Here `pickletools.genops`, of the standard library, reads the instructions, and this module carries
out only those that make dicts, lists, tuples, numbers and texts. A name that the caller does not know is refused.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import IO, Any, NamedTuple

from ..errors import NanopatchError

#: The longest pickle that is read, in bytes, and in instructions, each of which can make an object of 100 bytes.
#: nanoGPT's of gpt2-xl, with the state of its optimizer, has 600,000 bytes and 80,000 instructions.
MAX_PICKLE, MAX_INSTRUCTIONS = 2**21, 2**18
#: The largest key of a dict that is a number, and the deepest nesting. More could make Python hang or crash.
MAX_KEY, MAX_DEPTH = 2**31, 100

#: Instructions that put their argument on the stack, and those that put a fixed value there.
ARGUMENTS = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"}
ARGUMENTS |= {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Name(NamedTuple):
    """Something of Python that a pickle names, such as `collections.OrderedDict`. It is not imported."""

    name: str


#: What a pickle may name, and what stands for a call of it: None if it may be named but not called.
Known = Mapping[str, "Callable[..., Any] | None"]
NOTHING: Known = MappingProxyType({})


def unpickle(
    file: IO[bytes], where: object, known: Known = NOTHING, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """What the next pickle in an open file holds. The file then stands behind it.

    where: what error messages call the pickle. known: what it may name. persistent: what stands for an object that it
    keeps elsewhere, given that object's id; without it there may be none.

    Raises NanopatchError if the pickle is not whole, if it is longer than MAX_PICKLE, or if it names or does anything
    else: then the message says what.

    Examples
    --------
    >>> import io, pickle
    >>> unpickle(io.BytesIO(pickle.dumps({"itos": {0: "a"}, "size": 1})), "meta.pkl")
    {'itos': {0: 'a'}, 'size': 1}
    >>> unpickle(io.BytesIO(pickle.dumps(print)), "meta.pkl")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    nanopatch.errors.NanopatchError: meta.pkl holds builtins.print, which could run code: it is not read; save a ...
    """
    start = file.tell()
    content = io.BytesIO(file.read(MAX_PICKLE))  # so that a length in the file reserves no more memory than this
    try:
        found = _carry_out(content, where, known, persistent)
        _check_size(found)
        file.seek(start + content.tell())
        return found
    except NanopatchError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = beginning(str(error)) or type(error).__name__
        if len(content.getbuffer()) == MAX_PICKLE:
            what += f"; it may be longer than {MAX_PICKLE} bytes, which are not read"
        raise NanopatchError(f"{where} is not a whole pickle ({what}): fetch or save it again") from None


def beginning(text: str) -> str:
    """The beginning of a text that a file may have chosen, for an error message; quoted if it cannot be printed."""
    text = " ".join(text.split())[:100]
    return text if text.isprintable() else ascii(text)


def _check_size(found: Any) -> None:
    """Raise ValueError if what a pickle holds is nested deeply, or would be longer than MAX_PICKLE with nothing reused.

    A list of ten lists that are one list of ten lists ... is small until something goes through it.
    """
    left, waiting = MAX_PICKLE, [(found, 0)]
    while waiting:
        item, depth = waiting.pop()
        left -= 4 + len(item) if type(item) is str else 4
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply, or uses the same objects too often")
        if type(item) is dict:
            waiting += [(each, depth + 1) for pair in item.items() for each in pair]
        elif type(item) in (list, tuple):
            waiting += [(each, depth + 1) for each in item]


def _carry_out(file: IO[bytes], where: object, known: Known, persistent: Callable[[Any], Any] | None) -> Any:
    stack: list[Any] = []
    marks: list[int] = []  # where on the stack the items of a list, dict or tuple begin
    memo: dict[int, Any] = {}  # objects to be used again

    def refuse(what: str) -> NanopatchError:
        better = "a state dict of tensors alone (model.state_dict())" if persistent else "texts and numbers alone"
        return NanopatchError(f"{where} holds {beginning(what)}, which could run code: it is not read; save {better}")

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def put(into: Any, keys: list[Any], values: list[Any]) -> None:
        if type(into) is not dict or len(keys) != len(values):
            raise ValueError("items of a dict without a dict")
        for key, value in zip(keys, values, strict=True):
            # The hash of a tuple of tuples of ... can take for ever. Large numbers can be chosen to have the same hash.
            if type(key) is not str and (type(key) is not int or abs(key) > MAX_KEY):
                raise ValueError(f"a dict's key is a {type(key).__name__}, or too large")
            into[key] = value

    for number, (operation, argument, _) in enumerate(pickletools.genops(file)):
        name = operation.name
        if number > MAX_INSTRUCTIONS:
            raise ValueError(f"it has more than {MAX_INSTRUCTIONS} instructions")
        if isinstance(argument, int) and argument.bit_length() > 128:
            raise ValueError("it holds a number of more than 128 bits")
        if name in ARGUMENTS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "DICT":
            items = since_mark()
            made: dict[Any, Any] = {}
            put(made, items[::2], items[1::2])
            stack.append(made)
        elif name == "LIST":
            stack.append(since_mark())
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in SHORT_TUPLES:
            n = SHORT_TUPLES[name]
            if len(stack) < n:
                raise IndexError("the stack is empty")
            stack[-n:] = [tuple(stack[-n:])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else since_mark()
            if type(stack[-1]) is not list:
                raise ValueError("items of a list without a list")
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            if name == "SETITEM":
                marks.append(len(stack) - 2)
            items = since_mark()
            put(stack[-1], items[::2], items[1::2])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if int(argument or 0) > MAX_KEY:
                raise ValueError(f"it numbers its objects up to {argument}")
            memo[int(argument or 0)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "GLOBAL":
                named = str(argument).replace(" ", ".", 1)
            else:
                last, module = stack.pop(), stack.pop()
                if type(module) is not str or type(last) is not str:
                    raise ValueError("a name is not a text")
                named = f"{module}.{last}"
            if named not in known:
                raise refuse(named)
            stack.append(Name(named))
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            call = known.get(called.name) if isinstance(called, Name) else None
            if call is None or type(arguments) is not tuple:
                raise refuse(f"a call of {called.name if isinstance(called, Name) else type(called).__name__}")
            stack.append(call(*arguments))
        elif name == "BUILD":  # attributes of an object: a state dict keeps version numbers there
            attributes = stack.pop()
            if type(stack[-1]) is not dict or type(attributes) is not dict:
                raise refuse(f"attributes of a {type(stack[-1]).__name__}")
        elif name == "BINPERSID" and persistent is not None:
            stack.append(persistent(stack.pop()))
        elif name == "STOP":
            return stack.pop()
        else:
            raise refuse(f"the instruction {name}")
    raise ValueError("it does not end")
