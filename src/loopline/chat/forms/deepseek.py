"""Calls between special tokens, the form of DeepSeek V3 and R1; V3.1's shorter form is read and written too.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
    ```json
    {...}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

V3.1 (`short=True` on writing) has `<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜>`. A section without
its closing token, which the V3 template leaves out after one call, is read at the end of the answer.
Not covered: DeepSeek's own escaping of arguments in V3.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from loopline.chat.forms.form import Call, CallForm, Malformed, Schemas, load_call, plain_name

OPEN, CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
FENCED = re.compile(r"\s*([\w.-]+)\s*\n```json\n(.*)\n```\s*", re.DOTALL)
ONE = re.compile(re.escape(BEGIN) + "(.*?)" + re.escape(SEPARATOR) + "(.*?)" + re.escape(END), re.DOTALL)


class DeepSeek(CallForm):
    """Special tokens around a name and JSON."""

    name: ClassVar[str] = "deepseek"
    opens: ClassVar[tuple[str, ...]] = (OPEN,)
    tags: ClassVar[tuple[str, ...]] = (OPEN, CLOSE, BEGIN, SEPARATOR, END)
    strays: ClassVar[tuple[str, ...]] = (CLOSE, BEGIN, END)

    def __init__(self, short: bool = False) -> None:
        self.short = short

    def end(self, text: str, final: bool) -> int | None:
        at = text.find(CLOSE)
        return at + len(CLOSE) if at >= 0 else len(text) if final else None

    def read(self, section: str, tools: Schemas | None) -> list[Call]:
        body = section.removeprefix(OPEN).removesuffix(CLOSE)
        calls = [_read(head, rest) for head, rest in ONE.findall(body)]
        if not calls or ONE.sub("", body).strip():
            raise Malformed(f"not {BEGIN}...{SEPARATOR}...{END}")
        return calls

    def write(self, calls: Sequence[Call]) -> str:
        return OPEN + ("" if self.short else "\n").join(self._write(call) for call in calls) + CLOSE

    def _write(self, call: Call) -> str:
        name, arguments = plain_name(call, self.name), self.dumps(call.arguments)
        if self.short:
            return f"{BEGIN}{name}{SEPARATOR}{arguments}{END}"
        return f"{BEGIN}function{SEPARATOR}{name}\n```json\n{arguments}\n```{END}"


def _read(head: str, rest: str) -> Call:
    fenced = FENCED.fullmatch(rest)
    name, arguments = (fenced[1], fenced[2]) if fenced else (head.strip(), rest)
    return Call(name, load_call(f'{{"name": "", "arguments": {arguments}}}', "arguments").arguments)
