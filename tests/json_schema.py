"""JSON schema, as much of draft 2020-12 as configs give rise to; an unknown keyword is an error, not ignored.

    complaints(value, schema)        # [] when it fits

Written here because it is forty lines and no dependency of the project brings a validator.
"""

import re
from typing import Any

NOTES = {"title", "description", "default", "$defs", "examples"}
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
}


def complaints(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, path: str = "") -> list[str]:
    """What is wrong with `value`, as "dotted.path: keyword"."""
    root = root if root is not None else schema
    out: list[str] = []

    def wrong(keyword: str) -> None:
        out.append(f"{path}: {keyword} {schema[keyword]!r}")

    for keyword, wanted in schema.items():
        match keyword:
            case "$ref":
                out += complaints(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, path)
            case "type":
                if not _is(value, wanted):
                    wrong(keyword)
            case "enum":
                if value not in wanted:
                    wrong(keyword)
            case "const":
                if value != wanted:
                    wrong(keyword)
            case "anyOf" | "oneOf":
                if not any(complaints(value, part, root, path) == [] for part in wanted):
                    wrong(keyword)
            case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
                if _is(value, "number") and not _within(keyword, value, wanted):
                    wrong(keyword)
            case "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties":
                kind = {"Length": str, "Items": list, "Properties": dict}[keyword[3:]]
                if isinstance(value, kind) and (len(value) < wanted if keyword[:3] == "min" else len(value) > wanted):
                    wrong(keyword)
            case "pattern":
                if isinstance(value, str) and not re.search(wanted, value):
                    wrong(keyword)
            case "properties":
                for name, part in wanted.items():
                    if isinstance(value, dict) and name in value:
                        out += complaints(value[name], part, root, f"{path}.{name}".strip("."))
            case "required":
                if isinstance(value, dict) and not set(wanted) <= set(value):
                    wrong(keyword)
            case "additionalProperties":
                for name in set(value) - set(schema.get("properties", {})) if isinstance(value, dict) else ():
                    if wanted is False:
                        out.append(f"{path}: unknown {name}")
                    elif isinstance(wanted, dict):
                        out += complaints(value[name], wanted, root, f"{path}.{name}".strip("."))
            case "propertyNames":
                for name in value if isinstance(value, dict) else ():
                    out += complaints(name, wanted, root, f"{path}.{name}".strip("."))
            case "items":
                for index, item in enumerate(value if isinstance(value, list) else ()):
                    if index >= len(schema.get("prefixItems", ())):
                        out += complaints(item, wanted, root, f"{path}.{index}".strip("."))
            case "prefixItems":
                for index, part in enumerate(wanted):
                    if isinstance(value, list) and index < len(value):
                        out += complaints(value[index], part, root, f"{path}.{index}".strip("."))
            case _:
                assert keyword in NOTES, f"{path}: this checker does not know {keyword!r}"
    return out


def _is(value: Any, name: str) -> bool:
    if name in ("number", "integer"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (name == "number" or float(value).is_integer())
    return isinstance(value, TYPES[name])


def _within(keyword: str, value: float, bound: float) -> bool:
    if keyword.startswith("exclusive"):
        return value > bound if keyword.endswith("Minimum") else value < bound
    return value >= bound if keyword == "minimum" else value <= bound
